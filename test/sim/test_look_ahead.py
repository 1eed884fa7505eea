# SPDX-License-Identifier: Apache-2.0
"""The expert shows what it would do next, and the episode does not notice."""

from dataclasses import replace

import numpy as np
import pytest
from test_dagger import SETTINGS, WanderingPolicy

from worldvla_ros.errors import SimulationError
from worldvla_ros.recording.demonstration_file import whole_file
from worldvla_ros.training.libero_hdf5 import read_episodes
from worldvla_sim.dagger import record_turns
from worldvla_sim.demonstrations import write_demonstration
from worldvla_sim.expert.policy import ExpertPolicy
from worldvla_sim.libero_env import LiberoEnv
from worldvla_sim.look_ahead import look_ahead

STEPS = 5


@pytest.fixture(scope='module')
def env():
    with LiberoEnv('libero_goal', 7, image_size=16, assets='builtin') as env:
        yield env


def test_it_is_what_the_expert_does_then(env):
    expert = ExpertPolicy()
    observation = env.reset(None, seed=4)
    expert.start(env, observation)
    ahead, done = {}, []
    for step in range(70):  # until the knob is turned, so through grasp and turn
        action = expert.act(observation)
        done.append(action)
        if step % 13 == 0:
            ahead[step] = look_ahead(env, expert, action, STEPS)
        observation = env.step(action)
        assert observation.agentview is not None, 'only the copy stops rendering'
    assert len(ahead) == 6
    for step, chunk in list(ahead.items())[:-1]:
        np.testing.assert_array_equal(chunk, done[step:step + STEPS])


def test_labels_of_chunks_leave_turns_as_they_are_and_begin_with_the_label(env, tmp_path):
    demos = [record_turns(env, ExpertPolicy(), WanderingPolicy(), settings, seed=5, noise=0.1
                          ).finish()
             for settings in (SETTINGS, replace(SETTINGS, chunk=STEPS))]
    plain, asked = demos
    assert plain.chunks is None
    np.testing.assert_array_equal(asked.states, plain.states)
    np.testing.assert_array_equal(asked.actions, plain.actions)
    steps = np.flatnonzero(np.isfinite(asked.chunks).all((1, 2)))
    assert not asked.expert_acted[steps].any()
    assert (steps % 3 == 0).all() and len(steps) > 5
    np.testing.assert_array_equal(asked.chunks[steps, 0], asked.actions[steps])
    others = np.delete(asked.chunks, steps, 0)
    assert np.isnan(others).all()
    later = asked.actions[steps[-3] + 1]
    assert np.abs(asked.chunks[steps[-3], 1] - later).max() > 0.01, 'the policy went elsewhere'
    path = tmp_path / 'turn_on_the_stove_demo.hdf5'
    with whole_file(path) as file:
        write_demonstration(file.create_group('data'), 'demo_0', asked)
        write_demonstration(file['data'], 'demo_1', plain)
    read, without = read_episodes(path)
    np.testing.assert_array_equal(read.chunks, asked.chunks)
    assert without.chunks is None


def test_what_fails_in_the_copy_is_an_error_here(env, capfd):
    class Failing:
        def act(self, observation):
            raise ZeroDivisionError('of the test')

    env.reset(None, seed=4)
    with pytest.raises(SimulationError, match='looking 5 steps ahead of step 0 failed after 1'):
        look_ahead(env, Failing(), np.zeros(7), STEPS)
    assert 'ZeroDivisionError: of the test' in capfd.readouterr().err
    assert env.step(np.zeros(7)).agentview is not None
