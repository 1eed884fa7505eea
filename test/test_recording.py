# SPDX-License-Identifier: Apache-2.0
"""Demonstrations on a robot: what belongs together in time, and the file that comes of it."""

import os

import h5py
from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from worldvla_ros.arm_state import arm_state
from worldvla_ros.datatypes import Frame
from worldvla_ros.errors import RecordingError
from worldvla_ros.recording.demonstration_file import add_demonstration, demonstration_file
from worldvla_ros.recording.timeline import Pace, Timeline
from worldvla_ros.training.libero_hdf5 import read_episodes

MS = 1_000_000
PERIOD = 50 * MS
PACE = Pace(PERIOD, max_age_ns=100 * MS, state_tolerance_ns=20 * MS, wrist_tolerance_ns=20 * MS)
RIGHT = np.array([0.5, 0, 0, 0, 0, 0, -1.0])


def picture(value):
    return np.full((8, 8, 3), value, np.uint8)


def action(step, gripper=-1.0):
    """An action that tells its step."""
    return np.array([0.01 * (step + 1), 0, 0, 0, 0, 0, gripper])


def place(stamp):
    return np.array([stamp / 1e9, 0.0, 0.5])


class Robot:
    """Fills a timeline as topics do: from a start on, each with its own period and delay [ns]."""

    def __init__(self, start=1000 * MS):
        self.timeline, self.start = Timeline(PACE), start

    def show(self, count, period=PERIOD, delay=0):
        for number in range(count):
            self.timeline.push_frame(Frame(picture(number), self.start + delay + number * period))
        return self

    def show_wrist(self, count, period=PERIOD, delay=0):
        for number in range(count):
            self.timeline.push_wrist_frame(
                Frame(picture(100 + number), self.start + delay + number * period))
        return self

    def feel(self, count, period=PERIOD, delay=0, fingers=(0.02, -0.02)):
        for stamp in self.start + delay + period * np.arange(count):
            self.timeline.push_pose(int(stamp), place(stamp), Rotation.identity())
            self.timeline.push_fingers(int(stamp), np.array(fingers))
        return self

    def command(self, count, period=PERIOD, delay=0):
        for number in range(count):
            self.timeline.push_command(self.start + delay + number * period, action(number))
        return self

    @property
    def episode(self):
        return self.timeline.episode()


def shown(episode):
    """The number of the frame at each step."""
    return episode.frames[:, 0, 0, 0].tolist()


def told(episode):
    """The number of the command at each step."""
    return (episode.actions[:, 0] * 100 - 1).round().astype(int).tolist()


def test_each_command_belongs_to_the_newest_frame_of_before():
    episode = Robot().show(6).command(5, delay=30 * MS).episode
    assert shown(episode) == told(episode) == [0, 1, 2, 3, 4]


def test_in_lockstep_a_command_belongs_to_the_frame_of_its_own_stamp():
    episode = Robot().show(6).command(6).episode
    assert shown(episode) == told(episode) == [0, 1, 2, 3, 4, 5]


def test_steps_keep_their_rate_whatever_those_of_camera_and_commands_are():
    fast = Robot().show(31, period=10 * MS).command(26, period=10 * MS).episode
    assert shown(fast) == told(fast) == [0, 5, 10, 15, 20, 25]
    slow = Robot().show(4, period=100 * MS).command(6).episode
    assert shown(slow) == [0, 0, 1, 1, 2, 2]


@given(st.lists(st.integers(-15, 15), min_size=12, max_size=12))
def test_commands_that_come_a_little_early_or_late_are_all_kept_once(delays):
    robot = Robot().show(20)
    for number, delay in enumerate([0, *delays]):
        robot.timeline.push_command(robot.start + number * PERIOD + delay * MS, action(number))
    assert told(robot.episode)[:12] == list(range(12))


def test_steps_that_show_the_same_picture_again_are_counted():
    """Pins a bug: from a slow camera a quarter of the steps did, and nobody said so."""
    slow = Robot().show(60, period=67 * MS).command(80).episode
    assert slow.repeats == sum(np.diff(shown(slow)) == 0) > 15
    fast = Robot().show(120, period=33 * MS).command(80).episode
    assert fast.repeats == 0


def test_pictures_that_no_command_can_refer_to_are_forgotten():
    robot = Robot().show(100).show_wrist(100)
    robot.timeline.forget_pictures_before(robot.start + 90 * PERIOD)
    assert robot.timeline.frames == 10
    robot.start += 90 * PERIOD
    assert shown(robot.command(10).episode) == list(range(90, 100))


def test_the_state_is_the_nearest_to_the_frame_not_to_the_command():
    robot = Robot().show(4).feel(8, period=25 * MS).command(4, delay=40 * MS)
    episode = robot.episode
    np.testing.assert_allclose(
        episode.positions, [place(robot.start + step * PERIOD) for step in range(4)])
    assert episode.fingers.shape == (4, 2) and episode.quaternions.shape == (4, 4)


def test_without_pose_or_gripper_there_is_no_state_and_without_a_wrist_camera_no_picture():
    robot = Robot().show(4).command(4)
    robot.timeline.push_pose(robot.start, place(0), Rotation.identity())
    episode = robot.episode
    assert (episode.positions, episode.quaternions, episode.fingers, episode.wrist) == (None,) * 4


def test_the_wrist_camera_shows_what_it_saw_at_the_frame():
    episode = Robot().show(4).show_wrist(4, delay=-10 * MS).command(4).episode
    assert episode.wrist[:, 0, 0, 0].tolist() == [100, 101, 102, 103]


def test_waiting_at_both_ends_is_left_out_and_waiting_between_is_kept():
    still = np.array([0, 0, 0, 0, 0, 0, -1.0])
    closed = still * -1
    steps = [still, still, RIGHT, still, closed, closed]
    robot = Robot().show(6)
    for number, one in enumerate(steps):
        robot.timeline.push_command(robot.start + number * PERIOD, one)
    episode = robot.episode
    assert shown(episode) == [2, 3, 4], 'to the step that closes the gripper'
    np.testing.assert_array_equal(episode.actions, steps[2:5])


def test_a_pause_of_the_commands_is_zero_motion_that_keeps_the_gripper():
    robot = Robot().show(11)
    for step in (0, 1, 2, 8, 9):
        robot.timeline.push_command(robot.start + step * PERIOD,
                                    action(step, gripper=1.0 if step < 2 else 0.0))
    episode = robot.episode
    assert told(episode) == [0, 1, 2, 2, -1, -1, -1, 8, 8, 9]
    assert (episode.actions[:, 6] == 1.0).all(), '0 leaves the gripper as it is'


def test_a_gripper_that_is_told_later_counts_from_the_beginning():
    robot = Robot().show(3)
    for step, gripper in enumerate((0.0, 0.0, -1.0)):
        robot.timeline.push_command(robot.start + step * PERIOD, action(step, gripper))
    assert robot.episode.actions[:, 6].tolist() == [-1, -1, -1]


def test_what_comes_late_or_twice_changes_nothing():
    robot = Robot().show(4).command(4)
    for step in (3, 1):
        robot.timeline.push_frame(Frame(picture(200), robot.start + step * PERIOD))
        robot.timeline.push_command(robot.start + step * PERIOD, action(50))
    assert shown(robot.episode) == told(robot.episode) == [0, 1, 2, 3]


def moved_only(robot):
    for step in range(4):
        robot.timeline.push_command(robot.start + step * PERIOD, RIGHT * [1, 0, 0, 0, 0, 0, 0])


def still_only(robot):
    robot.timeline.push_command(robot.start, RIGHT * [0, 0, 0, 0, 0, 0, 1])


def another_clock(robot):
    robot.command(4)
    robot.timeline.push_command(5, action(0))


def another_size(robot):
    robot.timeline.push_frame(Frame(np.zeros((4, 4, 3), np.uint8), robot.start + 4 * PERIOD))
    robot.command(5)


def later_clock(robot):
    robot.command(2)
    robot.timeline.push_command(1_700_000_000_000 * MS, action(0))


@pytest.mark.parametrize('spoil, complaint', [
    (another_size, r'2 sizes came, such as \(4, 4\) and \(8, 8\) px'),
    (later_clock, '1699999999 s lie between two commands'),
    (lambda robot: None, 'no command came'),
    (moved_only, 'gripper -1'),
    (still_only, 'none of 1 commands moves'),
    (another_clock, 'stamps of command were set back'),
    (lambda robot: robot.command(8), r'no frame within 0\.1 s of the step 0\.30 s after'),
    (lambda robot: robot.command(4, delay=-PERIOD), r'no frame within .* 0\.00 s after'),
    (lambda robot: robot.feel(2).command(4), r'no ee_pose within 0\.02 s of the step 0\.10 s'),
    (lambda robot: robot.show_wrist(3).command(4), 'no picture of the wrist camera within'),
])
def test_what_cannot_be_put_together_is_refused_with_the_reason(spoil, complaint):
    robot = Robot().show(4)
    spoil(robot)
    with pytest.raises(RecordingError, match=complaint):
        _ = robot.episode


# --- the file ---------------------------------------------------------------------------------


@pytest.fixture
def episode():
    return Robot().show(5).show_wrist(5).feel(5).command(5).episode


def test_training_reads_what_was_recorded(tmp_path, episode):
    path, name = add_demonstration(tmp_path, 'Put the bowl, gently.', episode)
    again = add_demonstration(tmp_path, 'Put the bowl, gently.', episode)
    assert path == again[0] == tmp_path / 'put_the_bowl_gently_demo.hdf5'
    assert (name, again[1]) == ('demo_0', 'demo_1')
    first, _ = read_episodes(path, wrist=True)
    assert first.success and first.instruction == 'Put the bowl, gently.'
    np.testing.assert_array_equal(first.frames, episode.frames)
    np.testing.assert_array_equal(first.wrist, episode.wrist)
    np.testing.assert_array_equal(first.actions, episode.actions)
    np.testing.assert_array_equal(first.executed, episode.actions)
    np.testing.assert_allclose(first.states, arm_state(
        episode.positions, Rotation.from_quat(episode.quaternions), episode.fingers))


def test_a_gripper_of_one_joint_keeps_its_opening_and_no_state_stays_none(tmp_path):
    robot = Robot().show(3).feel(3, fingers=[0.03]).command(3)
    path, _ = add_demonstration(tmp_path, 'a', robot.episode)
    assert next(read_episodes(path)).states[:, 6] == pytest.approx(0.03)
    path, _ = add_demonstration(tmp_path, 'b', Robot().show(3).command(3).episode)
    assert next(read_episodes(path)).states is None


def test_a_number_that_was_deleted_in_between_is_not_given_twice(tmp_path, episode):
    for _ in range(3):
        path, _ = add_demonstration(tmp_path, 'a', episode)
    with h5py.File(path, 'a') as file:
        del file['data/demo_1']
    assert add_demonstration(tmp_path, 'a', episode)[1] == 'demo_3'


def test_a_group_of_another_name_is_passed_over(tmp_path, episode):
    """Pins a bug: a demonstration that was renamed by hand cost the next one, and training."""
    for _ in range(2):
        path, _ = add_demonstration(tmp_path, 'a', episode)
    with h5py.File(path, 'a') as file:
        file.move('data/demo_1', 'data/demo_1_bad')
    assert add_demonstration(tmp_path, 'a', episode)[1] == 'demo_1'
    assert [one.name for one in read_episodes(path)] == ['demo_0', 'demo_1']


def test_a_file_whose_data_are_no_group_is_refused_and_left_as_it_was(tmp_path, episode):
    """Pins a bug: TypeError, and what was recorded was thrown away."""
    path = demonstration_file(tmp_path, 'a')
    with h5py.File(path, 'w') as file:
        file['data'] = 1
    before = path.read_bytes()
    with pytest.raises(RecordingError, match=f'cannot add to {path}: Incompatible object'):
        add_demonstration(tmp_path, 'a', episode)
    assert path.read_bytes() == before


def test_a_failure_leaves_the_file_as_it_was(tmp_path, episode, monkeypatch):
    path, _ = add_demonstration(tmp_path, 'a', episode)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, os.strerror(28))
    with monkeypatch.context() as patch, pytest.raises(RecordingError, match='disk is full'):
        patch.setattr('worldvla_ros.recording.demonstration_file.flush', full)
        add_demonstration(tmp_path, 'a', episode)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    assert add_demonstration(tmp_path, 'a', episode)[1] == 'demo_1'


def test_a_file_of_another_kind_is_not_overwritten(tmp_path, episode):
    path = demonstration_file(tmp_path, 'a')
    path.write_text('notes')
    with pytest.raises(RecordingError, match=f'cannot write {path}'):
        add_demonstration(tmp_path, 'a', episode)
    assert path.read_text() == 'notes'


def test_a_sentence_without_a_letter_makes_no_file(tmp_path):
    with pytest.raises(RecordingError, match='expected a sentence'):
        demonstration_file(tmp_path, '?!')
    assert len(os.fsencode(demonstration_file(tmp_path, '漢' * 300).name)) < 255
