# SPDX-License-Identifier: Apache-2.0
"""`record`: what training reads is what the camera showed, the arm felt and the operator said."""

from dataclasses import replace
import signal
import subprocess
import threading

from ament_index_python.packages import get_package_prefix
from bridge_client import start, wait_until
import cv2
from geometry_msgs.msg import PoseStamped
import numpy as np
import pytest
from rclpy.node import Node
from rclpy.parameter import Parameter
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Header

from worldvla_ros.datatypes import Frame
from worldvla_ros.errors import RecordingError, StateError
from worldvla_ros.model.image_preprocessing import square_frame
from worldvla_ros.msg import DeltaAction
from worldvla_ros.nodes.conversions import command_to_action, frame_to_image, to_time
from worldvla_ros.nodes.record import Terminal, describe
from worldvla_ros.nodes.recorder import Recorder, RecorderParameters, _by_itself
from worldvla_ros.recording.demonstration_file import add_demonstration
from worldvla_ros.recording.timeline import RecordedEpisode, Timeline
from worldvla_ros.safety.command import ActionScale, Command
from worldvla_ros.training.libero_hdf5 import read_episodes
from worldvla_sim.demonstrations import DemonstrationRecorder
from worldvla_sim.libero_env import LiberoEnv

ACTIONS = np.random.default_rng(7).uniform(-1, 1, (8, 7))
ACTIONS[:, 6] = np.sign(ACTIONS[:, 6])
IMAGE_SIZE = 64  # [px] of the bridge
SENTENCE = 'put the bowl on the plate'
RATE = 20.0  # [Hz]


@pytest.fixture
def record(context, spin):
    """Start a recorder in this process."""
    def record(*remaps, **values):
        arguments = [part for remap in remaps for part in ('-r', remap)]
        return spin(Recorder('action', context=context, cli_args=['--ros-args', *arguments],
                             parameter_overrides=[Parameter(name.replace('__', '.'), value=value)
                                                  for name, value in values.items()]))
    return record


def test_an_episode_recorded_over_ros_is_the_one_that_the_simulator_records(
        domain_id, record, tmp_path):
    """Live and recorded in process: frame for frame, state for state, action for action."""
    recorder = record('image:=camera/agentview/image_raw',
                      'wrist_image:=camera/wrist/image_raw', wrist=True, image_size=IMAGE_SIZE)
    for _, robot in start(domain_id, wrist=True):
        wait_until(lambda: recorder.count_publishers('camera/agentview/image_raw'))
        robot.reset(suite='libero_object', task=0, init_state=3)
        wait_until(lambda: begins(recorder))
        robot.play(ACTIONS)
        wait_until(lambda: recorder._timeline.frames > len(ACTIONS))
        path, _ = add_demonstration(tmp_path, SENTENCE, recorder.end())
    live, = read_episodes(path, wrist=True)

    with LiberoEnv('libero_object', 0, assets='builtin', image_size=IMAGE_SIZE,
                   wrist=True) as env:
        inside, observation = DemonstrationRecorder(env), env.reset(3)
        for action in ACTIONS.astype(np.float32):
            inside.add(observation, action, action)
            observation = env.step(action)
        seen, base = inside.finish().seen, env.base_position
    np.testing.assert_array_equal(live.frames, seen.agentview)
    np.testing.assert_array_equal(live.wrist, seen.wrist)
    np.testing.assert_allclose(live.actions, ACTIONS, atol=1e-6)
    np.testing.assert_allclose(live.states[:, :3], seen.arm.ee_positions - base, atol=1e-9)
    np.testing.assert_allclose(live.states[:, 6], np.abs(seen.arm.gripper_positions).sum(1))


def begins(recorder):
    """Whether all topics are heard, so that recording begins."""
    try:
        return recorder.begin() == []
    except RecordingError:
        return False


class Teleoperated(Node):
    """A robot that somebody moves: camera, arm and commands at one rate, until it is told not."""

    def __init__(self, context, *, compressed=False, arm=True):
        super().__init__('teleoperated', context=context)
        self._compressed, self._arm = compressed, arm
        self._camera = (self.create_publisher(CompressedImage, 'image/compressed', 1)
                        if compressed else self.create_publisher(Image, 'image', 1))
        self._poses = self.create_publisher(PoseStamped, 'ee_pose', 1)
        self._joints = self.create_publisher(JointState, 'joint_states', 1)
        self._commands = self.create_publisher(DeltaAction, 'action', 10)
        self.scale, self.pictures, self.shows, self.ticks = 1.0, [], True, 0
        self.create_timer(1 / RATE, self._tick)

    def wait(self, wait_for):
        """Wait until all that was on its way has been heard, and some more has come."""
        last = self.ticks + 6
        wait_for(lambda: self.ticks > last)

    def _tick(self):
        self.ticks += 1
        stamp = self.get_clock().now()
        header = Header(stamp=stamp.to_msg(), frame_id='panda_link0')
        if self.shows:
            self._show(stamp.nanoseconds)
        if self._arm:
            pose = PoseStamped(header=header)
            pose.pose.position.x, pose.pose.orientation.w = 0.4, 1.0
            self._poses.publish(pose)
            self._joints.publish(JointState(header=header, position=[0.02, 0.02], name=[
                'panda_finger_joint1', 'panda_finger_joint2']))
        self._commands.publish(command_to_action(Command.from_controller_input(
            np.array([0.5 * self.scale, 0, 0, 0, 0, 0, -1.0]), ActionScale()), header))

    def _show(self, stamp_ns):
        """Show a picture of 96 x 64 px, which says its number."""
        picture = np.full((64, 96, 3), 8 * (len(self.pictures) % 30), np.uint8)
        picture[:, 48:, 0] = 255
        self.pictures.append(picture)
        if self._compressed:
            self._camera.publish(CompressedImage(
                header=Header(stamp=to_time(stamp_ns)), format='png',
                data=cv2.imencode('.png', picture[..., ::-1])[1].tobytes()))
            return
        self._camera.publish(frame_to_image(Frame(picture, stamp_ns), 'camera'))


def test_pictures_are_cropped_and_resized_as_for_the_policy(record, context, spin, wait_for):
    robot = spin(Teleoperated(context, compressed=True))
    recorder = record(camera__transport='compressed', image_size=32)
    wait_for(lambda: begins(recorder))
    wait_for(lambda: recorder._timeline.commands > 5)
    episode = recorder.end()
    numbers = [int(frame[0, 0, 1]) // 8 for frame in episode.frames]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    for frame, number in zip(episode.frames, numbers, strict=True):
        np.testing.assert_array_equal(
            frame, square_frame(np.ascontiguousarray(robot.pictures[number][:, 16:80]), 32))


def test_without_a_camera_nothing_begins_and_without_the_arm_it_is_said(
        record, context, spin, wait_for):
    robot = spin(Teleoperated(context, arm=False))
    robot.shows = False
    recorder = record()
    wait_for(lambda: recorder.count_publishers('/action'))
    with pytest.raises(RecordingError, match='no usable picture comes on /image; is the camera'):
        recorder.begin()
    robot.shows = True
    wait_for(lambda: 'image' in recorder._newest)
    assert recorder.begin() == ['/ee_pose', '/joint_states']
    wait_for(lambda: recorder._timeline.commands > 3)
    assert recorder.end().positions is None


def test_one_node_commands_while_it_is_recorded(record, context, spin, wait_for):
    recorder = record()
    with pytest.raises(RecordingError, match='on /action, found 0; start your teleoperation'):
        recorder.begin()
    robot = spin(Teleoperated(context))
    wait_for(lambda: begins(recorder))
    second = robot.create_publisher(DeltaAction, 'action', 1)
    wait_for(lambda: recorder.count_publishers('/action') == 2)
    with pytest.raises(RecordingError, match='found 2; stop the others: the policy node'):
        recorder.begin()
    robot.destroy_publisher(second)


def test_who_waits_fills_no_memory(record, monkeypatch):
    """Pins a bug: all pictures were kept until Enter, each with the message that it was cut of."""
    recorder, now = record(image_size=0), [1000.0]
    monkeypatch.setattr('worldvla_ros.nodes.recorder.time.monotonic', lambda: now[0])
    recorder._timeline = timeline = Timeline(recorder.config.pace)
    message = np.zeros((48, 96, 3), np.uint8)

    def watch(seconds):
        for _ in range(10 * seconds):
            now[0] += 0.1
            stamp = round(now[0] * 1e9)
            recorder._keep('image', lambda one, at=stamp: recorder._keep_picture(
                one, Timeline.push_frame, Frame(message[:, 24:72], at)))
    watch(60)
    assert timeline.frames < 25
    recorder._keep('commands', lambda one: one.push_command(round(now[0] * 1e9), np.ones(7)))
    watch(300)
    assert timeline.frames < 625
    cut = _by_itself(message[:, 24:72])
    assert cut.base is None and _by_itself(message) is message


def test_a_command_in_the_frame_of_the_tool_is_refused(record):
    """Pins a bug: it was kept as if its axes were those of the base."""
    with pytest.raises(StateError, match=r"frame 'panda_hand' and must be .* base, 'panda_link0'"):
        record()._on_command(DeltaAction(header=Header(frame_id='panda_hand')))


def test_what_is_no_picture_pose_or_command_is_refused_and_recording_goes_on(
        record, context, spin, wait_for):
    robot = spin(Teleoperated(context))
    recorder = record()
    wait_for(lambda: begins(recorder))
    robot._commands.publish(DeltaAction(gripper=float('nan')))
    robot._commands.publish(DeltaAction())
    robot._poses.publish(PoseStamped())
    robot._camera.publish(frame_to_image(Frame(np.zeros((8, 8, 3), np.uint8), 0), ''))
    robot._camera.publish(Image(encoding='rgb8', height=1, width=1))
    wait_for(lambda: recorder._timeline.commands > 3)
    episode = recorder.end()
    assert np.isfinite(episode.actions).all() and len(episode) >= 3


# --- the terminal -----------------------------------------------------------------------------


@pytest.fixture
def robot(context, spin):
    """See Teleoperated."""
    return spin(Teleoperated(context))


@pytest.fixture
def converse(robot, record, wait_for, tmp_path, capsys):
    """Type lines, one for each time that something is asked; return what is said."""
    recorder = record()
    wait_for(lambda: begins(recorder))
    recorder.throw_away()

    def converse(*lines):
        rest = list(lines)

        def ask(prompt):
            if 'keeps' in prompt:
                robot.wait(wait_for)
            if not rest:
                raise EOFError
            return rest.pop(0)() if callable(rest[0]) else rest.pop(0)
        with pytest.raises(EOFError):
            Terminal(recorder, tmp_path, ask).converse()
        said = capsys.readouterr()
        return said.out + said.err
    converse.recorder = recorder
    return converse


def names(folder):
    """Names of all demonstrations below a folder."""
    return [one.name for path in sorted(folder.glob('*.hdf5')) for one in read_episodes(path)]


def test_enter_keeps_a_minus_throws_away_and_anything_else_is_asked_again(converse, tmp_path):
    said = converse('', SENTENCE, '', f'  {SENTENCE} ', '-', SENTENCE, 'what', '')
    assert names(tmp_path) == ['demo_0', 'demo_1']
    assert "expected Enter or -, got 'what'" in said
    assert said.count('kept as demo_') == 2 and 'with the state of the arm' in said


def test_what_was_not_ended_or_does_not_move_or_has_no_sentence_is_not_kept(
        converse, robot, wait_for, tmp_path):
    assert 'not recording: expected a sentence' in converse('?!')
    assert 'not recording: this line is not UTF-8' in converse(f'{SENTENCE} \udcff')
    assert 'was not ended' in converse(SENTENCE)
    robot.scale = 0.0
    robot.wait(wait_for)
    assert 'thrown away: none of' in converse(SENTENCE, '')
    assert not list(tmp_path.glob('*.hdf5'))


def test_where_it_cannot_be_written_the_demonstration_waits(converse, tmp_path):
    folder = tmp_path / 'put_the_bowl_on_the_plate_demo.hdf5'
    folder.mkdir()

    def mend():
        folder.rmdir()
        return ''
    assert 'not written yet' in converse(SENTENCE, '', mend)
    assert names(tmp_path) == ['demo_0']


class Interrupted:
    """A recorder that is interrupted by Ctrl-C as soon as something is kept."""

    config = RecorderParameters()

    def begin(self):
        return []

    def end(self):
        signal.raise_signal(signal.SIGINT)
        return RecordedEpisode(np.zeros((2, 8, 8, 3), np.uint8), ACTIONS[:2], None, None, None,
                               None)

    def throw_away(self):
        pass


def test_an_interrupt_while_it_is_written_waits(tmp_path, capsys):
    """Pins a bug: Ctrl-C threw away what Enter had kept."""
    lines = [SENTENCE, '']
    with pytest.raises(KeyboardInterrupt):
        Terminal(Interrupted(), tmp_path, lambda prompt: lines.pop(0)).converse()
    said = capsys.readouterr()
    assert names(tmp_path) == ['demo_0'] and 'kept as demo_0' in said.out and not said.err


def test_pictures_that_came_twice_are_told():
    episode = RecordedEpisode(np.zeros((40, 8, 8, 3), np.uint8), np.zeros((40, 7)), None, None,
                              None, None)
    assert 'the step before' not in describe(episode, 20.0)
    assert '7 steps with the picture of the step before' in describe(replace(episode, repeats=7),
                                                                     20.0)


def test_actions_that_no_policy_can_say_are_counted(converse, robot):
    robot.scale = 3.0
    assert 'actions beyond 1.0' in converse(SENTENCE, '')


# --- the program ------------------------------------------------------------------------------


def program(*arguments):
    path = f'{get_package_prefix("worldvla_ros")}/lib/worldvla_ros/record'
    return subprocess.Popen([path, *arguments], text=True, stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def test_the_program_records_what_is_typed(robot, wait_for, tmp_path):
    running, said = program('--out', str(tmp_path), '--commands', 'action'), []
    reader = threading.Thread(target=lambda: said.extend(running.stdout))
    reader.start()

    def answer(line, *answers):
        """Type a line; return the line that begins with one of the answers when it has come."""
        before = len(said)
        running.stdin.write(f'{line}\n')
        running.stdin.flush()
        return wait_for(lambda: next(
            (one for one in said[before:] if one.startswith(answers)), None))

    def is_kept():
        """Record once; the program may not have found camera and commands yet."""
        if answer(SENTENCE, 'recording', 'not recording').startswith('not'):
            return False
        robot.wait(wait_for)
        return answer('', 'kept', 'thrown away').startswith(
            f'kept as demo_0 of {tmp_path}/put_the_bowl_on_the_plate_demo.hdf5')
    wait_for(is_kept)
    running.stdin.close()
    assert running.wait(timeout=30) == 0
    reader.join()
    assert names(tmp_path) == ['demo_0']


@pytest.mark.parametrize('arguments, complaint', [
    (['--ros-args', '-p', 'image_sise:=3'], "did you mean 'image_size'"),
    (['--ros-args', '-p', 'control.rate:=0.0'], 'control.rate'),
    (['--commands', 'not a topic'], 'topic name'),
    ([], 'required: --out'),
])
def test_the_program_refuses_what_it_cannot_use(arguments, complaint, domain_id, tmp_path):
    out = ['--out', str(tmp_path)] if arguments else []
    running = program(*out, *arguments)
    said, _ = running.communicate(timeout=30)
    assert running.returncode == 2 and complaint in said, said
    assert 'Traceback' not in said
