# SPDX-License-Identifier: Apache-2.0
"""The bridge over real topics, beside the same environment in process: nothing may differ.

One bridge per mode serves all tests, because building an environment takes a second or two.
"""

import itertools

from bridge_client import IMAGE_SIZE, start, wait_until
import numpy as np
import pytest

from worldvla_ros.config import describe
from worldvla_ros.control.settings import ObservationSettings
from worldvla_ros.msg import DeltaAction, Episode
from worldvla_ros.nodes.conversions import image_to_frame, to_ns
from worldvla_sim.libero_env import CONTROL_PERIOD, NO_OP, LiberoEnv
from worldvla_sim.ros import libero_bridge

MAX_STEPS = 8
PERIOD_NS = round(CONTROL_PERIOD * 1e9)
SECOND_NS = 1_000_000_000
TASK = {'suite': 'libero_object', 'task': 0, 'init_state': 3}
ACTIONS = np.random.default_rng(7).uniform(-1, 1, (MAX_STEPS, 7)).astype(np.float32)


@pytest.fixture(scope='module')
def lockstep(claim_domain):
    """A bridge in lockstep, which complains soon, and a robot."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(libero_bridge, '_COMPLAINT_PERIOD', 0.3)
        yield from start(claim_domain(), wrist=True, max_steps=MAX_STEPS)


@pytest.fixture
def robot(lockstep):
    """A robot beside the bridge in lockstep."""
    return lockstep[1]


@pytest.fixture(scope='module')
def env():
    """The environment that the bridge runs, in this process."""
    with LiberoEnv(TASK['suite'], TASK['task'], assets='builtin', image_size=IMAGE_SIZE,
                   wrist=True) as env:
        yield env


@pytest.fixture(scope='module')
def expected(env):
    """What ACTIONS lead to in process: observations before and after each."""
    return [env.reset(TASK['init_state']), *(env.step(action) for action in ACTIONS)]


def joints_of(observation):
    """Arm and fingers, (9,)."""
    return np.concatenate([observation.joint_positions, observation.gripper_positions])


# --- reset ------------------------------------------------------------------------------------


def test_a_reset_starts_the_official_task_and_says_so(robot, env):
    answer = robot.reset(**TASK)
    episode = robot.episodes[-1]
    assert answer.success and answer.message == '' and answer.instruction == env.instruction
    assert (answer.assets, answer.max_steps) == ('builtin', MAX_STEPS)
    assert (episode.suite, episode.task, episode.init_state) == tuple(TASK.values())
    assert (episode.episode, episode.instruction) == (answer.episode, env.instruction)
    assert (episode.state, episode.step, episode.max_steps) == (
        Episode.STATE_RUNNING, 0, MAX_STEPS)
    assert (episode.success, episode.error, episode.assets, episode.mode) == (
        False, '', 'builtin', 'lockstep')
    assert robot.reset(**TASK).episode == answer.episode + 1


@pytest.mark.parametrize('request_, named', [
    ({'suite': 'libero_42', 'task': 0, 'init_state': 0}, 'libero_object'),
    ({'suite': '', 'task': 0, 'init_state': 0}, 'libero_object'),
    ({**TASK, 'task': 10}, '9'), ({**TASK, 'init_state': 50}, '0 to 49')])
def test_what_cannot_be_started_is_refused_with_what_there_is(robot, request_, named):
    answer = robot.reset(**request_)
    assert not answer.success and named in answer.message and 'Traceback' not in answer.message


def test_it_lives_on_after_a_reset_that_it_refused(robot, expected):
    robot.reset(**TASK)
    assert not robot.reset(**{**TASK, 'init_state': 50}).success
    assert robot.reset(**TASK).success
    np.testing.assert_array_equal(robot.play(ACTIONS[:1])[1], joints_of(expected[1]))


def test_a_running_episode_is_reported_aborted_by_the_next_reset(robot):
    number = robot.reset(**TASK).episode
    robot.play(ACTIONS[:2])
    robot.reset(**TASK)
    last = [one for one in robot.episodes if one.episode == number][-1]
    assert (last.state, last.step, last.success) == (Episode.STATE_ABORTED, 2, False)


# --- what it publishes ------------------------------------------------------------------------


def test_cameras_show_what_the_environment_shows_rotated_as_in_training(robot, env, expected):
    robot.reset(**TASK)
    robot.play(ACTIONS[:3])
    wait_until(lambda: to_ns(robot.wrist_images[-1].header.stamp) == robot.newest_ns)
    for message, image in ((robot.images[-1], expected[3].agentview),
                           (robot.wrist_images[-1], expected[3].wrist)):
        assert (message.encoding, message.height, message.width) == ('rgb8', 64, 64)
        np.testing.assert_array_equal(image_to_frame(message).image, image)
    assert expected[3].agentview.std() > 20 and expected[3].wrist.std() > 20
    assert not np.array_equal(expected[3].agentview, expected[0].agentview)
    observation = env.reset(TASK['init_state'])
    raw = env._env.sim.render(IMAGE_SIZE, IMAGE_SIZE, camera_name='agentview')
    np.testing.assert_array_equal(observation.agentview, np.rot90(raw, 2))


def test_joints_and_hand_are_those_of_the_environment_in_the_frame_of_the_base(
        robot, env, expected):
    robot.reset(**TASK)
    robot.play(ACTIONS[:3])
    joints, pose = robot.joints[-1], robot.poses[-1]
    assert joints.name == libero_bridge.JOINT_NAMES and len(joints.position) == 9
    np.testing.assert_array_equal(joints.position, joints_of(expected[3]))
    assert pose.header == joints.header and pose.header.frame_id == 'panda_link0'
    position, orientation = pose.pose.position, pose.pose.orientation
    np.testing.assert_allclose([position.x, position.y, position.z],
                               expected[3].ee_position - env.base_position)
    np.testing.assert_allclose([orientation.x, orientation.y, orientation.z, orientation.w],
                               expected[3].ee_quaternion)


def test_the_clock_never_goes_back_and_no_plan_reaches_into_the_next_episode(robot):
    robot.reset(**TASK)
    robot.play(ACTIONS[:2])
    last_ns = robot.newest_ns
    robot.reset(**TASK)
    oldest, = (one.maximum for one in describe(ObservationSettings) if one.name == 'max_age')
    assert robot.newest_ns - last_ns > oldest * SECOND_NS
    robot.reset(**{**TASK, 'init_state': 50})
    robot.reset(**TASK)
    robot.play(ACTIONS[:1])
    wait_until(lambda: to_ns(robot.clocks[-1].clock) >= robot.newest_ns)  # it may be overtaken
    stamps = [to_ns(message.clock) for message in robot.clocks]
    assert stamps == sorted(stamps) and stamps[0] > 0
    assert {to_ns(image.header.stamp) for image in robot.images} <= set(stamps)


# --- lockstep ---------------------------------------------------------------------------------


def test_each_answered_frame_is_one_step_of_one_period(robot):
    robot.reset(**TASK)
    first_ns = robot.newest_ns
    robot.play(ACTIONS[:4])
    assert robot.newest_ns == first_ns + 4 * PERIOD_NS
    assert (robot.episodes[-1].step, robot.episodes[-1].state) == (4, Episode.STATE_RUNNING)


IGNORED = {
    'a sign of life': {'verdict': DeltaAction.VERDICT_HOLD, 'chunk_sequence': 0},
    'an answer to an older frame': {'stamp_ns': 0},
    'NaN': {'action': np.full(7, np.nan)},
    'infinity': {'action': np.array([0, 0, 0, 0, 0, 0, np.inf])},
}


@pytest.mark.parametrize('fields', IGNORED.values(), ids=IGNORED.keys())
def test_it_does_not_step_for(fields, robot, expected):
    robot.reset(**TASK)
    before_ns = robot.newest_ns
    robot.send(**{'action': -ACTIONS[0], **fields})
    robot.send(ACTIONS[0], stamp_ns=before_ns + SECOND_NS)  # an answer in any case
    wait_until(lambda: robot.newest_ns > before_ns)
    np.testing.assert_array_equal(robot.joints[-1].position, joints_of(expected[1]))
    np.testing.assert_array_equal(robot.play(ACTIONS[1:2])[1], joints_of(expected[2]))


def test_a_command_that_is_not_finite_is_complained_about(robot):
    robot.reset(**TASK)
    robot.send(np.full(7, np.nan))
    # Throttled: another test may have used up the complaint of this one.
    wait_until(lambda: any('not finite' in log.msg for log in robot.logs))
    assert robot.episodes[-1].state == Episode.STATE_RUNNING


def test_a_hold_of_the_safety_stage_is_an_answer_and_steps(robot):
    robot.reset(**TASK)
    before_ns = robot.newest_ns
    robot.send(NO_OP, verdict=DeltaAction.VERDICT_HOLD, chunk_sequence=1)
    wait_until(lambda: robot.newest_ns > before_ns)
    assert robot.newest_ns == before_ns + PERIOD_NS and robot.episodes[-1].step == 1


def test_an_unanswered_frame_is_sent_again_as_it_was(robot):
    robot.reset(**TASK)
    number = len(robot.images)
    wait_until(lambda: len(robot.images) >= number + 2)
    first, *others = robot.images[number - 1:number + 2]
    assert all(other == first for other in others)
    for inbox in (robot.joints, robot.poses):  # of the arm, for policies that read it
        assert inbox[-2] == inbox[-1] and inbox[-1].header.stamp == first.header.stamp
    assert robot.episodes[-1].step == 0


def test_an_episode_ends_at_its_step_limit_and_takes_no_command_then(robot):
    robot.reset(**TASK)
    robot.play(ACTIONS)
    last = robot.episodes[-1]
    assert (last.state, last.step, last.success) == (Episode.STATE_TIMEOUT, MAX_STEPS, False)
    end_ns, number = robot.newest_ns, len(robot.clocks)
    robot.send(ACTIONS[0], stamp_ns=end_ns + SECOND_NS)
    wait_until(lambda: len(robot.clocks) > number + 3)
    assert robot.episodes[-1] == last and robot.newest_ns == end_ns


def test_the_same_seed_and_commands_give_the_same_trajectory(robot, expected):
    """Bit for bit: twice over topics, and in process."""
    trajectories = []
    for _ in range(2):
        robot.reset(**TASK)
        trajectories.append(robot.play(ACTIONS))
    np.testing.assert_array_equal(trajectories[0], trajectories[1])
    np.testing.assert_array_equal(trajectories[0], [joints_of(one) for one in expected])
    assert np.ptp(trajectories[0], axis=0).min() > 1e-4


def test_a_random_reset_depends_on_its_seed_alone(robot, env):
    trajectories = []
    for seed in (5, 6, 5):
        robot.reset(**{**TASK, 'init_state': -1}, seed=seed)
        assert (robot.episodes[-1].init_state, robot.episodes[-1].seed) == (-1, seed)
        trajectories.append(robot.play(ACTIONS[:2]))
    np.testing.assert_array_equal(trajectories[0], trajectories[2])
    assert not np.array_equal(trajectories[0], trajectories[1])
    observations = [env.reset(None, seed=5), *(env.step(action) for action in ACTIONS[:2])]
    np.testing.assert_array_equal(trajectories[0], [joints_of(one) for one in observations])


# --- what goes wrong --------------------------------------------------------------------------


def test_an_error_of_the_simulator_is_reported_as_one_and_never_as_a_failure(
        lockstep, monkeypatch):
    bridge, robot = lockstep
    robot.reset(**TASK)
    robot.play(ACTIONS[:MAX_STEPS - 1])

    def fail(_):
        raise RuntimeError('the physics is on fire')
    with monkeypatch.context() as patch:
        patch.setattr(bridge._player.env._env, 'step', fail)
        frames = len(robot.images)
        robot.send(ACTIONS[0])
        wait_until(lambda: robot.episodes[-1].state == Episode.STATE_ERROR)
    last = robot.episodes[-1]
    assert 'the physics is on fire' in last.error
    assert len(robot.images) == frames  # no old picture under a new stamp
    assert not last.success and last.step == MAX_STEPS - 1
    assert any('counts as an error' in log.msg for log in robot.logs)
    robot.reset(**TASK)
    assert (robot.episodes[-1].state, robot.episodes[-1].error) == (Episode.STATE_RUNNING, '')


def test_without_an_answer_it_says_what_it_waits_for(robot, expected):
    robot.reset(**TASK)
    wait_until(lambda: any('waiting for a command' in log.msg for log in robot.logs))
    # In the thread that spins: its wait set may just hold the publisher's events.
    gone = robot.executor.create_task(robot.destroy_publisher, robot.commands)
    wait_until(gone.done)
    wait_until(lambda: any('nobody publishes /action' in log.msg for log in robot.logs))
    robot.commands = robot.create_publisher(DeltaAction, 'action', 10)
    wait_until(robot.commands.get_subscription_count)
    np.testing.assert_array_equal(robot.play(ACTIONS[:1])[1], joints_of(expected[1]))


# --- realtime ---------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def realtime_robot(claim_domain):
    """A robot beside a bridge in realtime."""
    for _, robot in start(claim_domain(), mode='realtime', max_steps=10_000):
        yield robot


def test_realtime_steps_without_commands_and_holds_still(realtime_robot, env):
    robot = realtime_robot
    robot.reset(**TASK)
    wait_until(lambda: robot.episodes[-1].step >= 10)
    joints = {to_ns(one.header.stamp): one.position for one in robot.joints}
    number = robot.episodes[-1].episode
    played = [one for one in robot.episodes if one.episode == number and one.step <= 10]
    stamps = [to_ns(one.header.stamp) for one in played]
    assert [one.step for one in played] == list(range(11))
    assert set(np.diff(stamps)) == {PERIOD_NS} and played[-1].mode == 'realtime'
    held = [env.reset(TASK['init_state']), *(env.step(NO_OP) for _ in range(10))]
    np.testing.assert_array_equal([joints[stamp] for stamp in stamps],
                                  [joints_of(one) for one in held])


def test_realtime_follows_commands_and_holds_still_when_they_cease(realtime_robot):
    robot = realtime_robot
    robot.reset(**TASK)
    start_x = robot.poses[-1].pose.position.x
    steps = itertools.count()

    def has_moved():
        if next(steps) % 5 == 0:
            robot.send(np.array([1, 0, 0, 0, 0, 0, 1.0]))
        return robot.poses[-1].pose.position.x > start_x + 0.03
    wait_until(has_moved)
    wait_until(lambda: np.ptp([one.pose.position.x for one in robot.poses[-10:]]) < 1e-4)
    fingers = robot.joints[-1].position[-2:]
    assert np.ptp(fingers) < 0.02, 'the gripper did not keep closing'
    robot.send(np.full(7, np.nan))
    step = robot.episodes[-1].step
    wait_until(lambda: robot.episodes[-1].step > step + 3)
    assert robot.episodes[-1].state == Episode.STATE_RUNNING


def test_realtime_begins_with_an_open_gripper_whatever_the_episode_before_held(
        realtime_robot, env):
    robot = realtime_robot
    robot.reset(**TASK)

    def close_for(steps, **fields):
        """Send a closing command before each of some steps, and let the bridge take the last."""
        for _ in range(steps):
            robot.send(np.array([0, 0, 0, 0, 0, 0, 1.0]), **fields)
            step = robot.episodes[-1].step
            wait_until(lambda before=step: robot.episodes[-1].step > before)
        wait_until(lambda: robot.episodes[-1].step > step + 2)

    close_for(20)
    robot.reset(**TASK)
    close_for(20, verdict=DeltaAction.VERDICT_HOLD, chunk_sequence=0)
    opened = env.reset(TASK['init_state']).gripper_positions
    np.testing.assert_allclose(robot.joints[-1].position[-2:], opened, atol=2e-3)
    close_for(20)
    close_for(20, verdict=DeltaAction.VERDICT_HOLD, chunk_sequence=0)
    assert np.abs(robot.joints[-1].position[-2:]).max() < 0.02, 'a hold keeps what was closed'
