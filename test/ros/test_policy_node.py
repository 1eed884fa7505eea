# SPDX-License-Identifier: Apache-2.0
"""The policy node over DDS: lifecycle, commands at a fixed rate, instructions, services."""

from diagnostic_msgs.msg import DiagnosticStatus
import numpy as np
from policy_client import LATCHED, NODE, RATE, TASK, is_zero, noise, picture
import pytest
from rcl_interfaces.srv import SetParametersAtomically
import rclpy
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, ReliabilityPolicy
from std_msgs.msg import String

from worldvla_ros.action import RunTask
from worldvla_ros.inference.backend import Health
from worldvla_ros.msg import DeltaAction, PolicyStatus
from worldvla_ros.nodes import policy_node


def stamp_ns(stamp):
    return stamp.sec * 10**9 + stamp.nanosec


def test_every_command_names_its_chunk_step_frame_and_instruction(running):
    first = running.next(running.actions, lambda action: action.chunk_step == 4)
    chunk = running.wait_for(lambda: next(
        (chunk for chunk in running.chunks if chunk.sequence == first.chunk_sequence), None))
    assert first.instruction == chunk.instruction == TASK
    assert first.observation_stamp == chunk.frame_stamps[-1]
    assert 0 <= stamp_ns(first.header.stamp) - stamp_ns(first.observation_stamp) < 10**9
    assert first.translation.x == pytest.approx(0.05 * chunk.actions[7 * 4])
    assert first.header.frame_id == 'panda_link0'
    assert (first.verdict, first.reason) == (DeltaAction.VERDICT_PASS, DeltaAction.REASON_NONE)
    steps = [(action.chunk_sequence, action.chunk_step)
             for action in running.actions if action.chunk_sequence]
    assert steps == [(1 + n // 5, n % 5) for n in range(len(steps))]


def test_commands_go_out_at_the_control_rate_although_nothing_moves(start_policy, client,
                                                                    wait_for):
    start_policy()
    assert all(is_zero(action) and action.reason == DeltaAction.REASON_NO_INSTRUCTION
               for action in client.actions)
    begin = client.next(client.actions)
    wait_for(lambda: client.actions[-1].header.stamp.sec > begin.header.stamp.sec + 1)
    sent = client.actions[client.actions.index(begin):]
    apart = np.diff([stamp_ns(action.header.stamp) for action in sent]) * 1e-9
    assert np.median(apart) == pytest.approx(1 / RATE, rel=0.2)


def test_unconfigured_and_inactive_nodes_publish_nothing_and_refuse_everything(start_policy,
                                                                               client):
    start_policy(autostart=False)
    assert client.state() == 'unconfigured'
    for call in (lambda: client.trigger('reset_history'), lambda: client.pause(True)):
        response = call()
        assert not response.success and 'not configured' in response.message
    assert not client.send_goal().accepted
    assert client.transition('configure') and client.state() == 'inactive'
    client.camera_on()
    client.instruct()
    response = client.ask_chunk(TASK)
    client.wait_for(response.done)
    assert not response.result().success and 'not active' in response.result().message
    assert not client.send_goal().accepted
    assert not client.actions and not client.chunks
    status = client.next(client.statuses)
    assert status.state == PolicyStatus.STATE_INACTIVE and 'not active' in status.halt_text
    assert client.transition('activate')
    client.next_halt(DeltaAction.REASON_NO_INSTRUCTION)  # the instruction before did not count


def test_a_node_can_be_configured_again_after_cleanup(running):
    for text in ('pick up the milk', 'pick up the butter'):
        assert running.transition('deactivate') and running.transition('cleanup')
        assert running.state() == 'unconfigured'
        assert running.node.count_publishers(f'{NODE}/action') == 0
        assert running.transition('configure') and running.transition('activate')
        running.instruct(text)
        running.next_motion()


@pytest.mark.parametrize('asked', ['configure', 'activate', 'cleanup'])
def test_a_transition_that_does_not_start_here_is_refused_and_the_robot_goes_on(running, asked):
    """Pins a bug: rclpy raises, and the node ended."""
    assert not running.transition(asked)
    assert running.state() == 'active'
    running.next_motion()


def test_the_last_command_before_silence_is_zero_motion(running):
    assert running.transition('deactivate')
    running.wait_for(lambda: running.statuses[-1].state == PolicyStatus.STATE_INACTIVE)
    running.wait_for(lambda: running.actions[-1].reason == DeltaAction.REASON_INACTIVE)
    assert is_zero(running.actions[-1]) and running.actions[-1].gripper == -1.0
    count = len(running.actions)
    assert running.transition('cleanup') and running.transition('configure')
    assert len(running.actions) == count and running.followed[-1].data == ''


def test_a_transition_of_a_node_that_was_told_to_stop_is_no_fault(start_policy, client, capfd):
    """Pins a bug: a lifecycle manager that stopped it, too, at Ctrl-C, made it log a traceback."""
    node = start_policy()
    client.wait_for(node.executor.create_task(node.close).done)
    assert client.transition('deactivate') and not client.transition('activate')
    assert client.transition('cleanup') and client.state() == 'unconfigured'
    assert 'Traceback' not in capfd.readouterr().err


def test_a_recording_that_does_not_exist_is_named_and_the_node_stays_usable(start_policy, client,
                                                                           capfd):
    start_policy(autostart=False, backend='replay', replay_path='/no/such/recording.npz')
    assert not client.transition('configure') and client.state() == 'unconfigured'
    assert '/no/such/recording.npz' in capfd.readouterr().err
    assert not client.transition('configure') and client.state() == 'unconfigured'


def test_settings_that_do_not_fit_each_other_are_refused_by_configure(start_policy, client, capfd):
    start_policy(autostart=False, obs__tolerance=0.02)  # not below half a period of 20 ms
    assert not client.transition('configure') and client.state() == 'unconfigured'
    log = capfd.readouterr().err
    assert 'obs.tolerance' in log and 'control.rate' in log
    assert 'backend' not in log, 'nothing was loaded'


def test_an_empty_instruction_stops_and_another_starts_again(running):
    running.instruct('')
    assert running.next_halt(DeltaAction.REASON_NO_INSTRUCTION).gripper == -1.0
    running.instruct('open the drawer')
    assert running.next_motion().instruction == 'open the drawer'
    assert [echo.data for echo in running.followed] == [TASK, '', 'open the drawer']


@pytest.mark.parametrize('text, complaint', [('x' * 10_000, '10000'), ('a\x07b', 'plain text')])
def test_an_instruction_that_cannot_be_used_is_refused_and_the_robot_holds(running, text,
                                                                           complaint, capfd):
    running.instruct(text)
    running.next_halt(DeltaAction.REASON_NO_INSTRUCTION)
    running.wait_for(lambda: running.followed[-1].data == '')
    assert complaint in capfd.readouterr().err
    refused = running.ask_chunk(text)
    running.wait_for(refused.done)
    assert not refused.result().success and complaint in refused.result().message
    running.instruct()
    running.next_motion()


def test_a_publisher_that_repeats_its_instruction_lets_a_slow_model_move(start_policy, client):
    """Pins a bug: each repetition made the chunk in flight void, and ended a goal."""
    start_policy(script_latency=0.3)
    client.camera_on()
    repeating = client.node.create_timer(0.1, client.instruct)
    client.next_motion()
    goal = client.send_goal(max_steps=3)
    assert goal.accepted
    _, result = client.result_of(goal)
    assert result.termination == RunTask.Result.TERMINATION_MAX_STEPS
    repeating.cancel()


def test_who_gives_the_instruction_again_hears_that_it_is_followed(running):
    running.instruct()
    assert running.next(running.followed).data == TASK


def test_a_chunk_in_flight_for_an_older_instruction_never_moves_the_robot(start_policy, client):
    start_policy(script_latency=0.3)
    client.camera_on()
    client.instruct('open the drawer')
    client.next_halt(DeltaAction.REASON_WAITING_FOR_CHUNK)
    client.instruct()
    client.next_motion()
    assert {action.instruction for action in client.actions if action.chunk_sequence} == {TASK}
    assert {chunk.instruction for chunk in client.chunks} == {TASK}


def test_steps_that_elapsed_during_an_inference_are_dropped_by_their_count(start_policy, client):
    start_policy(control__schedule='async', control__replan_steps=2, script_latency=0.03)
    client.camera_on()
    client.instruct()
    client.wait_for(lambda: len(client.chunks) > 5)
    assert client.chunks[0].dropped_steps == 0
    dropped = {chunk.sequence: chunk.dropped_steps for chunk in client.chunks}
    assert all(count > 0 for sequence, count in dropped.items() if sequence > 1)
    first_steps = {}
    for action in client.actions:
        first_steps.setdefault(action.chunk_sequence, action.chunk_step)
    assert all(first_steps[sequence] == count for sequence, count in dropped.items()
               if sequence in first_steps)
    client.next_status(lambda status: status.dropped_actions >= sum(dropped.values()))


def test_in_lockstep_each_frame_gets_one_command_that_names_it(start_policy, client, wait_for):
    start_policy(control__mode='lockstep', obs__max_age=10.0)
    client.instruct()
    wait_for(lambda: client.followed and client.followed[-1].data == TASK)
    for number in range(12):
        frame = picture(client, noise(number))
        client.images.publish(frame)
        command = client.command(1 + number // 5, number % 5)
        assert stamp_ns(command.header.stamp) >= stamp_ns(frame.header.stamp)
        if number % 5 == 0:
            assert command.observation_stamp == frame.header.stamp
    client.next_halt(DeltaAction.REASON_WAITING_FOR_CHUNK)  # a sign of life while none comes
    assert sum(action.chunk_sequence > 0 for action in client.actions) == 12


@pytest.mark.parametrize('transport, topic', [
    ('raw', '/image'), ('compressed', '/image/compressed')])
def test_of_the_frames_that_wait_only_the_newest_is_kept(start_policy, transport, topic):
    node = start_policy(camera__transport=transport)
    camera, = (one for one in node.subscriptions if one.topic_name == topic)
    assert camera.qos_profile.depth == 1
    assert camera.qos_profile.reliability is ReliabilityPolicy.BEST_EFFORT
    assert camera.qos_profile.durability is DurabilityPolicy.VOLATILE


def test_who_comes_late_hears_what_is_being_followed(running, context, spin, wait_for):
    late = rclpy.create_node('late', context=context, start_parameter_services=False)
    heard = []
    late.create_subscription(String, f'{NODE}/active_instruction', heard.append, LATCHED)
    spin(late)
    wait_for(lambda: heard)
    assert heard[0].data == TASK


def test_pause_holds_and_only_a_fresh_chunk_moves_afterwards(running):
    assert running.pause(True).success
    running.next_halt(DeltaAction.REASON_PAUSED)
    running.next_status(lambda status: status.state == PolicyStatus.STATE_PAUSED)
    sequence = max(action.chunk_sequence for action in running.actions)
    assert running.pause(False).success
    motion = running.next_motion()
    assert motion.chunk_sequence == sequence + 1 and motion.chunk_step == 0


def test_a_pause_outlives_a_cleanup(running):
    """Pins a bug: after another configure the next instruction moved a robot that was paused."""
    assert running.pause(True).success
    for transition in ('deactivate', 'cleanup', 'configure', 'activate'):
        assert running.transition(transition)
    running.instruct('another task')
    running.next_status(lambda status: status.instruction == 'another task')
    running.next_halt(DeltaAction.REASON_PAUSED)
    assert running.pause(False).success
    running.next_motion()


def test_a_history_reset_voids_the_plan(running):
    running.wait_for(lambda: running.chunks and len(running.chunks[-1].frame_stamps) == 2)
    chunks = len(running.chunks)
    assert running.trigger('reset_history').success
    marker = len(running.actions)
    motion = running.next_motion()
    earlier = [action.chunk_sequence for action in running.actions[:marker]]
    assert motion.chunk_step == 0 or motion.chunk_sequence > max(earlier)
    assert any(len(chunk.frame_stamps) == 1 for chunk in running.chunks[chunks:])


def test_a_chunk_on_request_moves_nothing_and_appears_on_no_topic(start_policy, client):
    start_policy()
    client.camera_on()
    client.wait_for(lambda: client.statuses and client.statuses[-1].observation_age >= 0)
    nothing = client.ask_chunk()
    client.wait_for(nothing.done)
    assert not nothing.result().success and 'no instruction' in nothing.result().message
    future = client.ask_chunk(TASK)
    client.wait_for(future.done)
    response = future.result()
    assert response.success and response.chunk.horizon == 5
    assert len(response.chunk.actions) == 35 and response.chunk.instruction == TASK
    client.next(client.actions)
    assert not client.chunks and all(map(is_zero, client.actions))


def test_requests_without_end_do_not_starve_the_robot(start_policy, client):
    start_policy(script_latency=0.15)  # longer than the 0.1 s that a chunk runs
    client.camera_on()
    client.instruct()
    client.next_motion()
    marker = len(client.chunks)
    futures = [client.ask_chunk('another task') for _ in range(6)]
    client.wait_for(lambda: all(future.done() for future in futures))
    assert len(client.chunks) - marker >= 5  # one of the robot's after each of theirs
    assert all(future.result().success for future in futures)


def test_an_open_request_is_answered_when_the_node_stops(start_policy, client):
    node = start_policy(script_latency=30.0)
    client.camera_on()
    requests, futures = node._loop.controller._planner.requests, []

    def two_are_open():
        """One that meets no two frames in time, on a busy machine, is answered at once."""
        futures[:] = [future for future in futures if not future.done()]
        futures.extend(client.ask_chunk(TASK) for _ in range(2 - len(futures)))
        return requests._callback is not None and len(requests._waiting) == 1
    client.wait_for(two_are_open)  # one is computed, one waits
    client.next(client.actions)  # who waits for a chunk does not stop the commands
    assert client.transition('deactivate') and client.transition('cleanup')
    client.wait_for(lambda: all(future.done() for future in futures))
    assert all('deactivated' in future.result().message for future in futures)


def test_what_a_policy_rests_on_changes_between_two_configurations(start_policy, client):
    """Pins a bug: another checkpoint needed another process, and the e-stop's latch was lost."""
    node = start_policy(backend='mock', autostart=False)
    rate, start = Parameter('control.rate', value=50.0), Parameter('autostart', value=True)
    assert client.transition('configure')
    refused, = node.set_parameters([rate])
    assert not refused.successful and 'clean it up, set it' in refused.reason
    assert client.transition('cleanup')
    done, fixed = node.set_parameters([rate, start])
    assert done.successful and not fixed.successful and 'read-only' in fixed.reason
    assert client.transition('configure')
    assert node._loop.controller.settings.control.rate == 50.0


def test_limits_change_while_the_node_runs_and_nothing_else_does(running):
    """Pins a bug, too: a number in place of a list ended the node."""
    def set_parameters(**values):
        parameters = [Parameter(name.replace('__', '.'), value=value).to_parameter_msg()
                      for name, value in values.items()]
        return running.call(SetParametersAtomically, 'set_parameters_atomically',
                            SetParametersAtomically.Request(parameters=parameters)).result
    assert set_parameters(limits__max_translation=0.001).successful
    limited = running.next(running.actions,
                           lambda action: action.verdict == DeltaAction.VERDICT_LIMITED)
    assert limited.reason == DeltaAction.REASON_OUT_OF_RANGE
    assert max(abs(limited.translation.x), abs(limited.translation.y)) == pytest.approx(0.001)
    for bad, complaint in (({'limits__gripper_min': 1.0, 'limits__gripper_max': -1.0}, 'gripper'),
                           ({'limits__max_rotation': 99.0}, 'max_rotation'),
                           ({'limits__max_rotation': 'a lot'}, 'max_rotation'),
                           ({'limits__workspace_min': [0.0]}, 'workspace_min'),
                           ({'limits__workspace_min': 0.3}, 'workspace_min'),
                           ({'control__rate': 10.0}, 'read-only')):
        refused = set_parameters(**bad)
        assert not refused.successful and complaint in refused.reason
    running.next_motion()


@pytest.mark.parametrize('how', ['active_shutdown', 'deactivate'])
def test_the_last_command_of_a_node_that_shuts_down_or_fails_is_zero_motion(
        start_policy, client, how, monkeypatch):
    node = start_policy()
    client.camera_on()
    client.instruct()
    client.next_motion()

    def fail_once(reason):
        monkeypatch.undo()
        raise RuntimeError(f'a bug in the node, {reason}')
    fails = how == 'deactivate'
    if fails:
        monkeypatch.setattr(node._loop, 'halt', fail_once)
    assert client.transition(how) is not fails
    client.wait_for(lambda: client.actions[-1].reason == DeltaAction.REASON_SHUTDOWN)
    assert is_zero(client.actions[-1])
    assert client.state() == ('unconfigured' if fails else 'finalized')


def test_what_a_transition_raises_is_logged(start_policy, client, monkeypatch, capfd):
    """Pins a bug: rclpy turned it into a failed transition and said nothing."""
    def fail(*_):
        raise RuntimeError('a bug in the backend')
    monkeypatch.setattr(policy_node, 'make_backend', fail)
    start_policy(autostart=False)
    assert not client.transition('configure') and client.state() == 'unconfigured'
    log = capfd.readouterr().err
    assert 'on_configure failed' in log and 'RuntimeError: a bug in the backend' in log
    monkeypatch.undo()
    assert client.transition('configure') and client.transition('activate')


def test_an_inactive_node_diagnoses_its_worker_and_the_rest_is_at_rest(start_policy, client):
    """Pins a bug: nothing was published, so a worker that had died was no fault."""
    node = start_policy(autostart=False)
    assert client.transition('configure')
    report = client.next(client.diagnostics)
    found = [(part.name.removeprefix('worldvla_policy: '), part.level, part.message)
             for part in report.status]
    assert found == [('worker', DiagnosticStatus.OK, 'ok'),
                     ('camera', DiagnosticStatus.OK, 'the node is not active'),
                     ('control', DiagnosticStatus.OK, 'the node is not active')]
    backend = node._loop.controller.backend
    backend.health, backend.fault = Health.FAILED, 'the worker died'
    client.next(client.diagnostics, lambda report: report.status[0].level == DiagnosticStatus.ERROR
                and report.status[0].message == 'the worker died')


def test_the_status_says_what_runs_and_how_well(running):
    status = running.next_status(lambda status: status.replans_per_second > 0
                                 and status.control_rate > 0)
    assert status.state == PolicyStatus.STATE_RUNNING and status.halt_reason == 0
    assert status.instruction == TASK and 'no model' in status.policy
    assert 0 <= status.observation_age < 0.5 and 0 <= status.latency_p50 <= status.latency_p99
    report = running.next(running.diagnostics)
    parts = {part.name: part for part in report.status}
    assert set(parts) == {f'worldvla_policy: {part}' for part in ('camera', 'worker', 'control')}
    assert all(part.level == b'\x00' and part.message == 'ok' for part in report.status)
    keys = {value.key for part in report.status for value in part.values}
    assert {'rate_hz', 'age_s', 'heartbeat_age_s', 'memory_mb', 'latency_p99_ms'} <= keys
