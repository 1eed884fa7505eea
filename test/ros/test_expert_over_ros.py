# SPDX-License-Identifier: Apache-2.0
"""The whole ROS loop must end in success: the expert over topics equals the expert in process."""

import pytest

from worldvla_sim.ros.evaluation import RosEpisodeRunner
from worldvla_sim.runner import EpisodeJob, EpisodeRunner, EvaluationSettings, RunOptions

SETTINGS = EvaluationSettings('expert', 'libero_object', 'builtin', over='ros')


def play_both_ways(episodes):
    """Return (over ROS, in process) as (success, steps, error) of each (task, initial state)."""
    played = []
    for runner in (RosEpisodeRunner(SETTINGS, RunOptions()),
                   EpisodeRunner(SETTINGS, RunOptions())):
        try:
            records = [runner(EpisodeJob(*episode)) for episode in episodes]
        finally:
            runner.close()
        played.append([(one.success, one.steps, one.error) for one in records])
    return played


def test_the_expert_succeeds_over_ros_exactly_as_in_process(domain_id):
    over_ros, in_process = play_both_ways([(0, 0), (4, 1)])
    assert over_ros == in_process
    assert all(success and error is None for success, _, error in over_ros)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_success_over_ros_equals_success_in_process_on_twenty_episodes(domain_id):
    episodes = [(task, init_state) for task in range(10) for init_state in range(2)]
    over_ros, in_process = play_both_ways(episodes)
    assert over_ros == in_process
    assert sum(success for success, _, _ in over_ros) >= 19
