# SPDX-License-Identifier: Apache-2.0
"""The whole ROS loop must end in success: the expert over topics equals the expert in process."""

import pytest

from worldvla_sim.episodes import run_episode
from worldvla_sim.libero_env import LiberoEnv
from worldvla_sim.policies import policy_factory
from worldvla_sim.ros.expert_over_ros import running_commander

SUITE = 'libero_object'


def play_both_ways(episodes, log_folder):
    """Return (over ROS, in process) as (success, steps, error) of each (task, initial state)."""
    over_ros, in_process = [], []
    with running_commander('builtin', log_folder) as commander:
        for task, init_state in episodes:
            record = commander.play(SUITE, task, init_state, 'builtin')
            over_ros.append((record.success, record.steps, record.error))
    for task, init_state in episodes:
        with LiberoEnv(SUITE, task, assets='builtin', render=False) as env:
            record = run_episode(env, policy_factory('expert')(), init_state)
            in_process.append((record.success, record.steps, record.error))
    return over_ros, in_process


def test_the_expert_succeeds_over_ros_exactly_as_in_process(domain_id, tmp_path):
    over_ros, in_process = play_both_ways([(0, 0), (4, 1)], tmp_path)
    assert over_ros == in_process
    assert all(success and error is None for success, _, error in over_ros)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_success_over_ros_equals_success_in_process_on_twenty_episodes(domain_id, tmp_path):
    episodes = [(task, init_state) for task in range(10) for init_state in range(2)]
    over_ros, in_process = play_both_ways(episodes, tmp_path)
    assert over_ros == in_process
    assert sum(success for success, _, _ in over_ros) >= 19
