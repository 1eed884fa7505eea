# SPDX-License-Identifier: Apache-2.0
"""The environment is deterministic, says what went wrong, and shows what training images show."""

import gc
import signal
import sys

import numpy as np
import pytest

from worldvla_ros.errors import AssetError, SimulationError
from worldvla_sim.demonstrations import Seen
from worldvla_sim.libero_env import NO_OP, LiberoEnv
from worldvla_sim.libero_setup import import_libero

ACTIONS = np.random.default_rng(0).uniform(-1, 1, (15, 7))


@pytest.fixture(scope='module')
def env():
    with LiberoEnv('libero_object', 0, image_size=64, msaa=0) as opened:
        yield opened


@pytest.fixture(scope='module')
def drawer_env():
    """Its layout samples a drawer's opening, which LIBERO does anew for every earlier reset."""
    with LiberoEnv('libero_spatial', 4, render=False) as opened:
        yield opened


def play(env, actions=ACTIONS, **reset):
    observation = env.reset(**reset)
    for action in actions:
        observation = env.step(action)
    return observation, env.state()


@pytest.mark.parametrize('reset', [{'init_state': 3}, {'seed': 7}])
def test_same_seed_and_actions_give_bit_identical_states_and_images(env, reset):
    first, first_state = play(env, **reset)
    second, second_state = play(env, **reset)
    np.testing.assert_array_equal(first_state, second_state)
    np.testing.assert_array_equal(first.agentview, second.agentview)


def test_a_fresh_environment_repeats_the_trajectory_of_a_used_one(env):
    _, used = play(env, seed=5)
    with LiberoEnv('libero_object', 0, render=False) as fresh:
        _, new = play(fresh, seed=5)
    np.testing.assert_array_equal(used, new)


def test_random_layout_does_not_depend_on_earlier_resets(drawer_env):
    layouts = []
    for _ in range(3):
        drawer_env.reset(seed=11, settle_steps=0)
        layouts.append(drawer_env.state())
    np.testing.assert_array_equal(layouts[0], layouts[1])
    np.testing.assert_array_equal(layouts[0], layouts[2])


def test_different_seeds_give_different_layouts(drawer_env):
    drawer_env.reset(seed=1, settle_steps=0)
    one = drawer_env.state()
    drawer_env.reset(seed=2, settle_steps=0)
    assert np.abs(one - drawer_env.state()).max() > 1e-3


def test_each_initial_state_and_seed_has_fixtures_of_its_own(drawer_env):
    places = []
    for reset in ({'init_state': 0}, {'init_state': 1}, {'init_state': 1, 'seed': 1}, {'seed': 0},
                  {'seed': 1}, {'init_state': 1}):
        drawer_env.reset(**reset, settle_steps=0)
        places.append(drawer_env.model.body('wooden_cabinet_1_main').pos[:2].copy())
    np.testing.assert_array_equal(places[-1], places[1])
    assert len({tuple(place) for place in places}) == len(places) - 1
    assert np.ptp(places, axis=0).max() < 0.05, 'all of them are within the range of the task'


def test_reset_leaves_the_global_random_generator_alone(env):
    np.random.seed(123)  # noqa: NPY002
    expected = np.random.get_state()[1].copy()  # noqa: NPY002
    env.reset(seed=9, settle_steps=0)
    np.testing.assert_array_equal(np.random.get_state()[1], expected)  # noqa: NPY002


def test_official_states_are_set_exactly(env):
    from worldvla_sim.tasks import initial_states
    env.reset(12, settle_steps=0)
    np.testing.assert_array_equal(env.state(), initial_states(env.task_info)[12])


def test_images_are_robosuites_turned_by_half_a_turn(env):
    observation = env.reset(0, settle_steps=1)
    raw = env._libero.sim.render(64, 64, camera_name='agentview')
    np.testing.assert_array_equal(observation.agentview, raw[::-1, ::-1])
    assert observation.agentview.std() > 10, 'the image is blank'


def test_observations_are_read_only_copies(env):
    observation = env.reset(0, settle_steps=1)
    before = observation.joint_positions.copy()
    env.step(np.ones(7))
    np.testing.assert_array_equal(observation.joint_positions, before)
    with pytest.raises(ValueError, match='read-only'):
        observation.agentview[0, 0] = 0


def test_observation_agrees_with_robosuites_own_sensors(env):
    observation = env.reset(0, settle_steps=2)
    robot = env._libero.robots[0]
    np.testing.assert_allclose(observation.ee_position, robot.sim.data.get_site_xpos(
        'gripper0_grip_site'))
    np.testing.assert_allclose(observation.joint_positions, robot._joint_positions)
    assert observation.gripper_positions.shape == (2,)
    assert abs(np.linalg.norm(observation.ee_quaternion) - 1) < 1e-9
    assert observation.wrist is None


def test_upward_action_moves_the_gripper_up_and_time_counts_control_steps(env):
    before = env.reset(0)
    for _ in range(5):
        after = env.step(np.array([0, 0, 1.0, 0, 0, 0, -1]))
    assert after.ee_position[2] > before.ee_position[2] + 0.03
    assert (before.time, after.time, env.steps) == (0.0, 0.25, 5)


def test_gripper_closes_on_plus_one(env):
    env.reset(0)
    for _ in range(10):
        closed = env.step(np.array([0, 0, 0, 0, 0, 0, 1.0]))
    assert np.ptp(closed.gripper_positions) < 0.01


@pytest.mark.parametrize('action', [np.zeros(6), np.zeros((1, 7)), np.full(7, np.nan),
                                    np.array([0, 0, 0, 0, 0, np.inf, 0])])
def test_unusable_actions_are_refused(env, action):
    env.reset(0, settle_steps=0)
    with pytest.raises(SimulationError, match='finite'):
        env.step(action)
    assert env.steps == 0


def test_two_environments_render_side_by_side(env):
    alone = env.reset(0, settle_steps=1).agentview
    with LiberoEnv('libero_spatial', 0, image_size=32, wrist=True) as other:
        seen = other.reset(0, settle_steps=1)
        assert seen.agentview.shape == seen.wrist.shape == (32, 32, 3)
        again = env.observe().agentview
    np.testing.assert_array_equal(alone, again)
    np.testing.assert_array_equal(alone, env.observe().agentview)


def test_pictures_that_were_not_rendered_are_refused(drawer_env):
    """Stacked they were an array of None, which only the HDF5 writer refused."""
    with pytest.raises(SimulationError, match='render=True'):
        Seen.stack([drawer_env.reset(0, settle_steps=0)])


def test_privileged_state_names_objects_goal_regions_and_fixture_joints(drawer_env):
    drawer_env.reset(0, settle_steps=0)
    truth = drawer_env.privileged()
    assert 'akita_black_bowl_1' in truth.bodies
    assert 'wooden_cabinet_1_top_region' in truth.sites
    assert truth.joints['wooden_cabinet_1_top_level'] < -0.1
    assert drawer_env.goal == [['on', 'akita_black_bowl_1', 'plate_1']]


@pytest.mark.parametrize('state', [-1, 50])
def test_unknown_initial_state_says_what_there_is(env, state):
    with pytest.raises(SimulationError, match='0 to 49'):
        env.reset(state)


@pytest.mark.parametrize('options', [{'robot': 'heavy'}, {'msaa': 3}, {'image_size': 0}])
def test_bad_options_are_refused(options):
    with pytest.raises(SimulationError, match='robot must be one of'):
        LiberoEnv('libero_object', 0, **options)


def test_unknown_assets_are_refused():
    with pytest.raises(AssetError, match='builtin'):
        LiberoEnv('libero_object', 0, assets='none')


def test_errors_in_liberos_reset_surface_at_once(env, monkeypatch):
    calls = []

    def broken():
        calls.append(1)
        raise KeyError('bad asset')
    monkeypatch.setattr(env._libero, 'reset', broken)
    with pytest.raises(SimulationError, match='bad asset') as raised:
        env.reset(0)
    assert isinstance(raised.value.__cause__, KeyError)
    assert len(calls) == 1


def test_placement_is_tried_a_bounded_number_of_times(env, monkeypatch):
    from robosuite.utils.errors import RandomizationError
    calls = []

    def never_fits():
        calls.append(1)
        raise RandomizationError('Cannot place all objects')
    monkeypatch.setattr(env._libero, 'reset', never_fits)
    with pytest.raises(SimulationError, match='another seed'):
        env.reset(None)
    assert len(calls) == 10


def test_diverging_physics_is_an_error_not_a_failed_episode(drawer_env):
    drawer_env.reset(0, settle_steps=0)
    drawer_env.data.qpos[-1] = np.nan
    with pytest.raises(SimulationError, match=r'diverged|failed'):
        drawer_env.step(NO_OP)


def test_a_closed_environment_says_so():
    env = LiberoEnv('libero_object', 0, render=False)
    env.close()
    env.close()
    with pytest.raises(SimulationError, match='closed'):
        env.reset(0)


@pytest.fixture
def dropped(monkeypatch):
    """Exceptions in destructors, which Python prints and drops."""
    seen = []
    monkeypatch.setattr(sys, 'unraisablehook', lambda dropped: seen.append(dropped.exc_value))
    return seen


def test_ctrl_c_while_robosuite_builds_takes_effect_after_it(monkeypatch, dropped):
    """Pins a bug: robosuite's destructor complained of a simulation without data."""
    import_libero()
    from robosuite.utils.binding_utils import MjData
    make, interrupted = MjData.__init__, []

    def interrupt(data, model):
        if not interrupted:
            interrupted.append(model)
            signal.raise_signal(signal.SIGINT)
        make(data, model)
    monkeypatch.setattr(MjData, '__init__', interrupt)
    with pytest.raises(KeyboardInterrupt):
        LiberoEnv('libero_object', 0, render=False)
    with LiberoEnv('libero_object', 0, render=False) as env:
        interrupted.clear()
        with pytest.raises(KeyboardInterrupt):
            env.reset(0)
        env.observe()
    gc.collect()
    assert dropped == []


def test_ctrl_c_within_a_step_takes_effect_after_it(monkeypatch):
    """Pins a bug: in numba's code it became an error of the episode."""
    with LiberoEnv('libero_object', 0, render=False) as env:
        env.reset(0)
        whole, began = env._libero.step, env.data.time

        def interrupted(action):
            signal.raise_signal(signal.SIGINT)
            return whole(action)
        monkeypatch.setattr(env._libero, 'step', interrupted)
        with pytest.raises(KeyboardInterrupt):
            env.step(NO_OP)
        assert env.data.time == pytest.approx(began + env.control_period)


def test_ctrl_c_while_an_environment_is_closed_is_not_dropped(monkeypatch, dropped):
    """Pins a bug: it came in one of robosuite's destructors, and the program went on."""
    import_libero()
    from robosuite.utils.binding_utils import MjData
    free = MjData.__del__

    def interrupt(data):
        signal.raise_signal(signal.SIGINT)
        free(data)
    env = LiberoEnv('libero_object', 0, render=False)
    gc.collect()
    with monkeypatch.context() as patch:
        patch.setattr(MjData, '__del__', interrupt)
        with pytest.raises(KeyboardInterrupt):
            env.close()
    assert dropped == []


def test_an_environment_whose_reset_failed_can_be_closed(monkeypatch):
    """Pins a bug: closing it raised another error, which hid the first."""
    def broken():
        raise KeyError('bad asset')
    env = LiberoEnv('libero_object', 0, render=False)
    monkeypatch.setattr(env._libero, '_load_model', broken)
    with pytest.raises(SimulationError, match='bad asset'), env:
        env.reset(0)
