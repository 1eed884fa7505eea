# SPDX-License-Identifier: Apache-2.0
"""Bad cameras, clocks and neighbours: the policy node says what is wrong, holds, and recovers."""

import os
from pathlib import Path
import signal
import subprocess

from ament_index_python.packages import get_package_prefix
import cv2
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseStamped, Twist, TwistStamped
import numpy as np
from policy_client import NODE, RATE, TASK, is_zero, noise, picture
import pytest
from sensor_msgs.msg import CompressedImage

from worldvla_ros.msg import DeltaAction, PolicyStatus
from worldvla_ros.nodes.conversions import to_time


def test_without_a_camera_it_holds_and_says_so(start_policy, client):
    start_policy()
    client.instruct()
    client.next_halt(DeltaAction.REASON_NO_OBSERVATION)
    status = client.next_status(lambda status: status.state == PolicyStatus.STATE_HOLDING)
    assert 'check the camera' in status.halt_text and status.observation_age == -1
    client.camera_on()
    client.next_motion()
    client.next_status(lambda status: status.state == PolicyStatus.STATE_RUNNING)


def test_a_camera_that_falls_silent_holds_until_it_is_back(running):
    running.shoot = None
    running.next_halt(DeltaAction.REASON_STALE_OBSERVATION)
    report = running.next(running.diagnostics, lambda report: report.status[0].level != b'\x00')
    assert 'too old' in report.status[0].message
    running.camera_on()
    running.next_motion()


@pytest.mark.parametrize('shift, reason', [
    (-5.0, DeltaAction.REASON_STALE_OBSERVATION), (5.0, DeltaAction.REASON_CLOCK)])
def test_frames_with_wrong_stamps_never_reach_the_model(start_policy, client, shift, reason):
    start_policy()

    def shoot(number):
        message = picture(client, noise(number))
        now_ns = client.node.get_clock().now().nanoseconds
        message.header.stamp = to_time(now_ns + round(shift * 1e9))
        return message
    client.shoot = shoot
    client.instruct()
    client.next_halt(reason)
    assert not client.chunks


def test_black_frames_never_reach_the_model_and_are_named(start_policy, client, capfd):
    start_policy()
    client.shoot = lambda number: picture(client, np.zeros((64, 64, 3), np.uint8))
    client.instruct()
    client.next_halt(DeltaAction.REASON_NO_OBSERVATION)
    client.next_status(lambda status: 'every pixel is zero' in status.halt_text
                       and 'no frame has arrived' not in status.halt_text)
    assert 'image refused: every pixel is zero' in capfd.readouterr().err
    assert not client.chunks
    client.camera_on()
    client.next_motion()
    client.next_status(lambda status: not status.halt_text)


@pytest.mark.parametrize('lag, complaint', [(0.0, 'the same stamp'), (0.1, 'older than')])
def test_frames_that_are_not_newer_are_dropped_with_the_reason(running, capfd, lag, complaint):
    """Pins a bug: they were dropped without a word, and all that was said is "too old"."""
    stamps_ns = []

    def shoot(number):
        """Take one picture that is newer than all before, then one stamp again and again."""
        message = picture(running, noise(number))
        if not stamps_ns:
            last_ns = running.node.get_clock().now().nanoseconds
            stamps_ns.extend((last_ns, last_ns - round(lag * 1e9)))
        message.header.stamp = to_time(stamps_ns[0])
        del stamps_ns[:-1]
        return message
    running.shoot = shoot
    running.next_halt(DeltaAction.REASON_STALE_OBSERVATION)
    running.next_status(lambda status: complaint in status.halt_text)
    assert f'image refused: {complaint}' in capfd.readouterr().err
    running.camera_on()
    running.next_motion()
    running.next_status(lambda status: not status.halt_text)


def level(report, part):
    """Return the level of a part of the node and its message."""
    found = {one.name: one for one in report.status}[f'worldvla_policy: {part}']
    return found.level, found.message


def test_the_camera_is_diagnosed_before_anybody_gives_an_instruction(start_policy, client):
    """Pins a bug: "no instruction" is the halt then, so the camera was "ok" without a frame."""
    start_policy()
    report = client.next(client.diagnostics)
    fault, text = level(report, 'camera')
    assert fault == DiagnosticStatus.ERROR and 'no frame has arrived' in text
    assert level(report, 'control') == (DiagnosticStatus.OK, 'ok')
    client.camera_on()
    client.next(client.diagnostics, lambda report: level(report, 'camera') == (
        DiagnosticStatus.OK, 'ok'))


@pytest.mark.parametrize('stop', ['estop', 'pause'])
def test_a_stopped_robot_is_a_warning_and_does_not_hide_the_camera(running, stop):
    getattr(running, stop)(True)
    report = running.next(running.diagnostics, lambda report: level(report, 'control')[0] == (
        DiagnosticStatus.WARN))
    assert stop[1:] in level(report, 'control')[1]
    assert level(report, 'camera') == (DiagnosticStatus.OK, 'ok')
    running.shoot = None
    report = running.next(running.diagnostics, lambda report: level(report, 'camera')[0] == (
        DiagnosticStatus.ERROR))
    assert 'too old' in level(report, 'camera')[1]
    assert level(report, 'control')[0] == DiagnosticStatus.WARN


def test_a_refused_image_among_good_ones_is_a_warning(running):
    running.shoot = lambda number: picture(running, noise(number) * (number % 2))
    report = running.next(running.diagnostics, lambda report: level(report, 'camera')[0] == (
        DiagnosticStatus.WARN))
    assert 'every pixel is zero' in level(report, 'camera')[1]
    running.next_motion()


def test_a_frozen_camera_holds_until_the_picture_changes(start_policy, client):
    start_policy(obs__frozen_after=10)
    client.shoot = lambda number: picture(client, noise(0))
    client.instruct()
    client.next_motion()
    client.next_halt(DeltaAction.REASON_FROZEN_CAMERA)
    client.pause(True)  # another halt, the same camera
    client.next_halt(DeltaAction.REASON_PAUSED)
    fault, text = level(client.next(client.diagnostics), 'camera')
    assert fault == DiagnosticStatus.ERROR and 'repeats one picture' in text
    client.pause(False)
    client.camera_on()
    client.next_motion()


@pytest.mark.parametrize('encoding, channels', [
    ('rgb8', 3), ('bgr8', 3), ('rgba8', 4), ('bgra8', 4), ('mono8', 1)])
def test_common_encodings_are_understood(start_policy, client, encoding, channels):
    start_policy()
    client.shoot = lambda number: picture(
        client, noise(number, (48, 64, channels)), encoding)  # not square: cropped
    client.instruct()
    client.next_motion()


@pytest.mark.parametrize('shape, encoding, settings, complaint', [
    ((64, 64, 2), 'yuv422_magic', {}, 'yuv422_magic'),
    ((48, 64, 3), 'rgb8', {'camera__crop': 'none'}, '64 x 48'),
    ((64, 64, 3), 'rgba8', {}, 'rgba8')])
def test_an_image_that_cannot_be_used_is_refused_with_the_reason(
        start_policy, client, capfd, shape, encoding, settings, complaint):
    start_policy(**settings)
    client.shoot = lambda number: picture(client, noise(number, shape), encoding)
    client.instruct()
    status = client.next_status(lambda status: complaint in status.halt_text)
    assert status.halt_reason == DeltaAction.REASON_NO_OBSERVATION
    assert 'image refused' in capfd.readouterr().err and not client.chunks
    client.camera_on()
    client.next_motion()
    client.next_status(lambda status: not status.halt_text)


def test_compressed_images_are_decoded_and_garbage_is_refused(start_policy, client):
    start_policy(camera__transport='compressed')

    def shoot(number, data=None):
        message = CompressedImage(format='png')
        message.header.stamp = client.now()
        message.data = data or cv2.imencode('.png', noise(number))[1].tobytes()
        return message
    client.shoot = lambda number: shoot(number, b'garbage')
    client.instruct()
    client.next_status(lambda status: 'cannot be decoded' in status.halt_text)
    client.shoot = shoot
    client.next_motion()


@pytest.mark.parametrize('kind, topic', [
    (DeltaAction, 'action'), (TwistStamped, 'delta_twist_cmds')])
def test_another_commander_of_the_same_topic_holds_both_off_before_any_report(
        start_policy, client, kind, topic):
    start_policy(servo__enabled=True, status_rate=0.1)
    client.camera_on()
    client.instruct()
    client.next_motion()
    other = client.node.create_publisher(kind, f'{NODE}/{topic}', 10)
    client.next_halt(DeltaAction.REASON_CONFLICT)
    client.take_away(other)
    client.next_motion()


def test_another_commander_is_seen_before_the_first_command(start_policy, client):
    start_policy(autostart=False)
    client.node.create_publisher(DeltaAction, f'{NODE}/action', 10)
    assert client.transition('configure')
    client.wait_for(lambda: client.node.count_publishers(f'{NODE}/action') > 1)
    client.camera_on()
    assert client.transition('activate')
    goal = client.send_goal()
    client.next_halt(DeltaAction.REASON_CONFLICT)
    status = client.next_status(lambda status: status.state == PolicyStatus.STATE_HOLDING)
    assert 'another publisher' in status.halt_text
    assert goal.accepted and all(map(is_zero, client.actions))


def test_a_script_that_is_over_holds_and_the_status_says_so(start_policy, client, tmp_path):
    path = tmp_path / 'chunks.npz'
    np.savez(path, actions=np.full((1, 5, 7), 0.1, np.float32))
    start_policy(backend='replay', replay_path=str(path))
    client.camera_on()
    client.instruct()
    client.next_motion()
    status = client.next_status(lambda status: 'inference failed' in status.halt_text)
    assert 'the script is over after 1 chunks' in status.halt_text
    assert status.state == PolicyStatus.STATE_HOLDING
    assert status.halt_reason == DeltaAction.REASON_INFERENCE_FAILED
    assert is_zero(client.next(client.actions))


def test_numbers_that_are_none_and_numbers_out_of_range_never_leave(start_policy, client,
                                                                     tmp_path):
    actions = np.full((1, 3, 7), 0.1, np.float32)
    actions[0, 0, 4], actions[0, 1] = np.nan, 50.0
    np.savez(tmp_path / 'chunks.npz', actions=actions)
    start_policy(backend='replay', replay_path=str(tmp_path / 'chunks.npz'))
    client.camera_on()
    client.instruct()
    client.wait_for(lambda: any(action.chunk_step == 2 for action in client.actions))
    bad, far, good = [action for action in client.actions if action.chunk_sequence]
    assert is_zero(bad) and bad.verdict == DeltaAction.VERDICT_HOLD
    assert bad.reason == DeltaAction.REASON_NOT_FINITE
    assert far.translation.x == pytest.approx(0.05) and far.gripper == 1.0
    assert (far.verdict, far.reason) == (DeltaAction.VERDICT_LIMITED,
                                         DeltaAction.REASON_OUT_OF_RANGE)
    assert good.verdict == DeltaAction.VERDICT_PASS


def test_the_twist_for_servo_is_the_speed_that_the_same_goal_offset_causes(start_policy, client):
    start_policy(servo__enabled=True)
    client.camera_on()
    client.instruct()
    client.next_motion()
    twist = client.next(client.twists, lambda twist: twist.twist.linear.x > 0)
    action = client.wait_for(lambda: next((
        action for action in client.actions if action.header.stamp == twist.header.stamp), None))
    assert twist.twist.linear.x == pytest.approx(0.26 * action.translation.x * RATE)
    assert twist.header.frame_id == 'panda_link0'


def test_a_workspace_box_needs_the_end_effector_and_keeps_it_inside(start_policy, client):
    start_policy(limits__workspace_max=[0.5, 0.5, 0.5], limits__workspace_min=[0.0, 0.0, 0.0])
    client.camera_on()
    client.instruct()
    client.next_halt(DeltaAction.REASON_WORKSPACE)
    pose = PoseStamped()
    pose.header.frame_id = 'panda_link0'
    pose.pose.orientation.w = 1.0
    pose.pose.position.x = pose.pose.position.y = 0.25

    def publish():
        pose.header.stamp = client.now()
        client.poses.publish(pose)
    arm = client.node.create_timer(1.0 / RATE, publish)
    client.next_motion()
    pose.pose.position.x = 0.5
    cut = client.next(client.actions,
                      lambda action: action.verdict == DeltaAction.VERDICT_LIMITED)
    assert cut.reason == DeltaAction.REASON_WORKSPACE and cut.translation.x <= 0.0
    pose.header.frame_id = 'camera'
    client.next_halt(DeltaAction.REASON_WORKSPACE)
    client.next_status(lambda status: "'camera'" in status.halt_text)
    pose.header.frame_id = 'panda_link0'
    client.next_motion()
    arm.cancel()
    client.next_halt(DeltaAction.REASON_WORKSPACE)


@pytest.fixture
def program(domain_id):
    """Start the installed program; it is killed at the end, if it still runs.

    It gets SIGHUP also where these tests run under nohup, which their children inherit.
    """
    inherited = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    path = Path(get_package_prefix('worldvla_ros')) / 'lib/worldvla_ros/worldvla_policy'
    processes = []

    def program(*wrapper, **values):
        values = {'control.rate': RATE, 'obs.tolerance': 0.005, 'status_rate': 20.0, **values}
        arguments = [word for name, value in values.items()
                     for word in ('-p', f'{name}:={value}')]
        processes.append(subprocess.Popen(
            [*wrapper, path, '--ros-args', *arguments], stderr=subprocess.PIPE, text=True,
            start_new_session=True, env={**os.environ, 'PYTHONUNBUFFERED': '1'}))
        return processes[-1]
    yield program
    signal.signal(signal.SIGHUP, inherited)
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize('number', [
    signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP])  # SIGHUP: a closed terminal
def test_a_signal_ends_the_program_with_zero_motion_and_answers(program, client, number):
    process = program(backend='mock', **{'servo.enabled': 'true'})
    client.wait_until_active()
    client.camera_on()
    goal = client.send_goal()
    result = goal.get_result_async()
    client.next_motion()
    process.send_signal(number)
    _, log = process.communicate(timeout=10)
    assert process.returncode == 0 and 'Traceback' not in log
    client.wait_for(lambda: client.actions[-1].reason == DeltaAction.REASON_SHUTDOWN)
    assert is_zero(client.actions[-1]) and client.actions[-1].gripper == -1.0
    client.wait_for(lambda: client.twists[-1].header == client.actions[-1].header)
    assert client.twists[-1].twist == Twist()
    client.wait_for(result.done)
    assert 'deactivated' in result.result().result.message


def test_a_closed_terminal_does_not_end_the_program_under_nohup(program, client):
    process = program('nohup', backend='mock')
    client.wait_until_active()
    process.send_signal(signal.SIGHUP)
    client.next(client.statuses)
    client.next(client.statuses)
    process.send_signal(signal.SIGTERM)
    client.wait_for(lambda: client.actions[-1].reason == DeltaAction.REASON_SHUTDOWN)


def test_a_signal_while_the_policy_loads_ends_the_program_at_once(program, wait_for):
    process = program(backend='worker')
    children = Path(f'/proc/{process.pid}/task/{process.pid}/children')
    worker = wait_for(lambda: children.read_text().split())[0]
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, log = process.communicate(timeout=10)
    assert process.returncode == 0 and 'Traceback' not in log
    assert 'interrupted while loading' in log
    assert not Path(f'/proc/{worker}').exists()


def test_a_missing_checkpoint_is_named_and_the_program_can_still_be_stopped(program, client,
                                                                            tmp_path):
    process = program(backend='worker', checkpoint=tmp_path / 'nowhere')
    lines = iter(process.stderr.readline, '')
    complaint = next(line for line in lines if 'cannot configure' in line)
    assert 'nowhere' in complaint and client.state() == 'unconfigured'
    assert not client.send_goal(TASK).accepted
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=10)
    assert process.returncode == 0 and 'Traceback' not in log
