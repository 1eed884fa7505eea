# SPDX-License-Identifier: Apache-2.0
"""Episodes over ROS: the same results as in one process, and errors that are no failures."""

import contextlib
import os
from pathlib import Path
import signal

import pytest

from worldvla_ros.errors import WorldVLAError
from worldvla_ros.graph import BRIDGE_NODE, POLICY_NODE
from worldvla_ros.policy.random_checkpoint import ensure_random_checkpoint
from worldvla_sim import evaluate
from worldvla_sim.policies import checkpoint_name
from worldvla_sim.results import Results
from worldvla_sim.ros import evaluation
from worldvla_sim.ros.evaluation import RosEpisodeRunner, evaluation_graph
from worldvla_sim.runner import EpisodeJob, EpisodeRunner, EvaluationSettings, RunOptions
from worldvla_sim.videos import EpisodeVideos

STEPS = 12


@pytest.fixture
def settings():
    """Settings of the random checkpoint over ROS."""
    folder = str(ensure_random_checkpoint())
    return EvaluationSettings(folder, 'libero_object', 'builtin', max_steps=STEPS, execute=3,
                              over='ros', checkpoint=checkpoint_name(folder))


def test_the_nodes_get_every_setting_of_the_evaluation(settings):
    policy, bridge = evaluation_graph(settings, threads=2)
    assert policy.parameters['control.replan_steps'] == 3
    assert policy.parameters['control.mode'] == bridge.parameters['mode'] == 'lockstep'
    assert policy.parameters['worker.threads'] == 2
    assert not policy.parameters['control.prepare']
    assert bridge.parameters['max_steps'] == STEPS and bridge.parameters['robot'] == 'light'
    assert bridge.parameters['image_size'] == 256


def final_frames(videos_folder):
    """Return the bytes of the one video: the same frames make the same file."""
    path, = videos_folder.iterdir()
    return path.name, path.read_bytes()


def test_an_episode_over_ros_equals_that_in_one_process_and_a_dead_node_is_an_error(
        settings, domain_id, tmp_path):
    job = EpisodeJob(4, 1)
    runners = {}
    for over, make in (('ros', RosEpisodeRunner), ('process', EpisodeRunner)):
        videos = EpisodeVideos(tmp_path / over)
        videos.create()
        runners[over] = make(settings, RunOptions(videos=videos))
    try:
        records = {over: runner(job) for over, runner in runners.items()}
        over_ros, in_process = records['ros'], records['process']
        assert (over_ros.success, over_ros.steps, over_ros.policy, over_ros.image_size) == (
            in_process.success, in_process.steps, in_process.policy, in_process.image_size)
        assert over_ros.steps == STEPS and 'sha256:' in over_ros.policy
        assert final_frames(tmp_path / 'ros') == final_frames(tmp_path / 'process')

        nodes = runners['ros'].process_ids
        os.kill(nodes[BRIDGE_NODE], signal.SIGKILL)
        with pytest.raises(WorldVLAError, match=f'{BRIDGE_NODE} ended with status -9'):
            runners['ros'](job)
        assert not Path(f'/proc/{nodes[POLICY_NODE]}').exists(), 'the others are stopped, too'
    finally:
        for runner in runners.values():
            runner.close()


def test_the_nodes_hear_this_machine_alone_whatever_the_shell_says(settings, monkeypatch):
    """Pins a bug: an exported discovery range or peer let a robot in the net join the episodes."""
    shell = {'ROS_DOMAIN_ID': '7', 'ROS_AUTOMATIC_DISCOVERY_RANGE': 'SUBNET',
             'ROS_STATIC_PEERS': '10.0.0.1'}
    for name, value in shell.items():
        monkeypatch.setenv(name, value)
    started = []

    class NoNodes(contextlib.nullcontext):
        def __init__(self, graph, logs):
            started.append({name: os.environ.get(name) for name in shell})
            raise WorldVLAError('none are needed')
    monkeypatch.setattr(evaluation, 'ProcessGroup', NoNodes)
    runner = RosEpisodeRunner(settings, RunOptions())
    for _ in range(2):
        with pytest.raises(WorldVLAError, match='none are needed'):
            runner(EpisodeJob(4, 1))
        assert {name: os.environ.get(name) for name in shell} == shell, 'to be left out again'
    for seen in started:
        assert seen.pop('ROS_DOMAIN_ID') != '7'
        assert seen == {'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST', 'ROS_STATIC_PEERS': None}


@pytest.mark.slow
def test_the_command_over_ros_plays_with_two_workers_and_the_next_after_an_error(
        settings, domain_id, tmp_path):
    out = tmp_path / 'out.json'
    assert evaluate.main([
        '--policy', settings.policy, '--suite', 'libero_object', '--tasks', '0,1', '--over', 'ros',
        '--init-states', '0-1', '--assets', 'builtin', '--max-steps', str(STEPS), '--workers', '2',
        '--json', str(out)]) == 0
    records = Results.load(out).records
    assert [(one.task, one.init_state, one.steps, one.error, one.over) for one in records] == [
        (task, state, STEPS, None, 'ros') for task in (0, 1) for state in (0, 1)]
