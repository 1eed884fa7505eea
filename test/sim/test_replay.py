# SPDX-License-Identifier: Apache-2.0
"""Replaying demonstrations says which still succeed, resumes, and keeps errors apart."""

import json
import shutil

import h5py
import numpy as np
import pytest
from training_data import episode, write_hdf5

from worldvla_ros.training.libero_hdf5 import observation_lag, read_episodes
from worldvla_ros.training.replay_list import Replay, ReplayList, actions_digest
from worldvla_sim import collect, replay
from worldvla_sim.libero_env import LiberoEnv
from worldvla_sim.tasks import load_task
from worldvla_sim.workers import JobFailure

TASK = 1
NAME = load_task('libero_object', TASK).name


@pytest.fixture(scope='module')
def recorded(tmp_path_factory):
    """A folder with one expert demonstration, recorded by the command."""
    out = tmp_path_factory.mktemp('demos')
    assert collect.main(['--suite', 'libero_object', '--tasks', str(TASK), '--per-task', '1',
                         '--assets', 'builtin', '--image-size', '16', '--out', str(out)]) == 0
    return out


@pytest.fixture
def demos(recorded, tmp_path):
    """The demonstration, and a second one that stops half-way."""
    path = tmp_path / 'demos' / f'{NAME}_demo.hdf5'
    path.parent.mkdir()
    shutil.copy(recorded / path.name, path)
    with h5py.File(path, 'a') as file:
        data = file['data']
        data.copy('demo_0', 'demo_1')
        for name in ('actions', 'executed_actions'):
            half = data['demo_0'][name][:len(data['demo_0'][name]) // 2]
            del data['demo_1'][name]
            data['demo_1'][name] = half
    return path.parent


@pytest.fixture
def pool(monkeypatch):
    """Workers that answer at once: demo_0 succeeds, demo_1 has an error the first time."""
    played = []

    class Pool:
        def __init__(self, make, workers):
            pass

        def run(self, jobs):
            for job in jobs:
                played.append(job.name)
                if job.name == 'demo_1' and played.count('demo_1') == 1:
                    yield job, JobFailure('no physics')
                else:
                    digest = dict(replay.find_jobs(job.path.parent, job.drop_no_ops))[job]
                    yield job, Replay(job.task, job.name, digest, job.simulation.in_words(),
                                      True, 9, 9)
    monkeypatch.setattr(replay, 'WorkerPool', Pool)
    return played


def test_a_recording_replays_to_success_and_a_half_one_does_not(demos, tmp_path, capsys):
    out = tmp_path / 'replays.json'
    assert replay.main([str(demos), '--out', str(out)]) == 0
    whole, half = ReplayList.load(out).replays
    assert (whole.name, whole.success, whole.kept) == ('demo_0', True, whole.steps)
    assert (half.name, half.success) == ('demo_1', False)
    assert f'1/2 succeed, {whole.steps + half.steps} of' in capsys.readouterr().out


def test_what_was_replayed_is_not_replayed_again_and_errors_are(demos, tmp_path, pool, capsys):
    out = tmp_path / 'replays.json'
    command = [str(demos), '--drop-no-ops', '--out', str(out)]
    assert replay.main(command) == 1
    assert f'error in {NAME}, demo_1: no physics' in capsys.readouterr().out
    assert replay.main(command) == 0
    assert pool == ['demo_0', 'demo_1', 'demo_1']
    assert replay.main(command[:1] + command[2:]) == 2
    assert 'name another file' in capsys.readouterr().err


def test_ctrl_c_says_how_to_go_on_and_leaves_the_list(demos, tmp_path, pool, monkeypatch, capsys):
    out = tmp_path / 'replays.json'
    command = [str(demos), '--out', str(out)]

    def interrupted(self, jobs):
        raise KeyboardInterrupt
        yield
    monkeypatch.setattr(replay.WorkerPool, 'run', interrupted)
    assert replay.main(command) == 130
    assert capsys.readouterr().err.endswith('interrupted; the same command goes on\n')
    assert ReplayList.load(out).replays == []


def test_a_demonstration_that_was_recorded_again_is_replayed_again(demos, tmp_path, pool):
    out = tmp_path / 'replays.json'
    for _ in range(2):
        replay.main([str(demos), '--out', str(out)])
    with h5py.File(demos / f'{NAME}_demo.hdf5', 'a') as file:
        file['data/demo_0/actions'][0, 0] += 0.1
    assert replay.main([str(demos), '--out', str(out)]) == 0
    assert pool[3:] == ['demo_0']
    assert len(ReplayList.load(out).replays) == 2


def test_what_was_replayed_in_another_simulation_is_replayed_again(demos, tmp_path, pool):
    out = tmp_path / 'replays.json'
    for _ in range(2):
        replay.main([str(demos), '--out', str(out)])
    with h5py.File(demos / f'{NAME}_demo.hdf5', 'a') as file:
        settings = json.loads(file['data'].attrs['env_args'])
        file['data'].attrs['env_args'] = json.dumps({**settings, 'robot': 'full'})
    assert replay.main([str(demos), '--out', str(out)]) == 0
    assert pool[3:] == ['demo_0', 'demo_1']
    assert {one.simulation for one in ReplayList.load(out).replays} == {
        'builtin assets, full robot'}


def test_replays_of_other_folders_stay_in_the_list(demos, tmp_path, pool, capsys):
    out = tmp_path / 'replays.json'
    other = Replay('libero_goal/open_it', 'demo_0', 'abc', '', True, 9, 9)
    ReplayList(False, [other]).save(out)
    for _ in range(2):
        replay.main([str(demos), '--out', str(out)])
    replays = ReplayList.load(out).replays
    assert other in replays and len(replays) == 3


def test_files_that_do_not_say_their_suite_need_it(demos, tmp_path, capsys):
    with h5py.File(demos / f'{NAME}_demo.hdf5', 'a') as file:
        assert json.loads(file['data'].attrs['env_args'])['suite'] == 'libero_object'
        del file['data'].attrs['env_args']
    command = [str(demos), '--out', str(tmp_path / 'replays.json')]
    assert replay.main(command) == 2
    assert 'give --suite' in capsys.readouterr().err
    assert replay.main([*command, '--suite', 'libero_goal']) == 2
    assert 'has no task' in capsys.readouterr().err
    (job, digest), _ = replay.find_jobs(demos, False, suite='libero_object', assets='builtin')
    assert (job.simulation.task, job.simulation.assets, len(digest)) == (TASK, 'builtin', 12)


class AskedEnv:
    """Notes what it is asked for."""

    success = True

    def __init__(self):
        self.seeds, self.states, self.actions = [], [], []

    def reset(self, init_state, seed):
        self.seeds.append(seed)

    def state(self):
        return np.zeros(1)

    def set_state(self, state):
        self.states.append(state)

    def step(self, action):
        self.actions.append(action)


@pytest.fixture
def env(monkeypatch):
    """The environment of every runner."""
    env = AskedEnv()
    monkeypatch.setattr(replay.ReplayRunner, '_environment', lambda self, job: env)
    return env


def test_only_moving_steps_are_replayed_without_no_ops(recorded, env):
    """The environment is asked for exactly the kept, executed actions."""
    (job, _), = replay.find_jobs(recorded, drop_no_ops=True)
    result = replay.ReplayRunner()(job)
    with h5py.File(job.path) as file:
        group = file['data/demo_0']
        kept = replay.kept_steps(group['actions'][:], group['executed_actions'][:])
        assert env.seeds == [group.attrs['seed']]
        np.testing.assert_array_equal(env.states, group['states'][:1])
        np.testing.assert_array_equal(env.actions, group['executed_actions'][:][kept])
    assert (result.steps, result.kept) == (len(kept), kept.sum())


def test_a_file_of_liberos_converter_is_replayed_from_the_first_frame_that_training_sees(
        tmp_path, env):
    path = tmp_path / f'{NAME}_demo.hdf5'
    write_hdf5(path, [episode()], 'converter')
    (job, digest), = replay.find_jobs(tmp_path, False, suite='libero_object', assets='builtin')
    result = replay.ReplayRunner()(job)
    trained_on, = read_episodes(path)
    np.testing.assert_array_equal(env.actions, trained_on.executed)
    with h5py.File(path) as file:
        np.testing.assert_array_equal(env.states, file['data/demo_0/states'][1:2])
    assert result.data == digest == actions_digest(trained_on.actions, trained_on.executed)


def test_a_damaged_demonstration_is_named(demos, tmp_path, capsys):
    with h5py.File(demos / f'{NAME}_demo.hdf5', 'a') as file:
        del file['data/demo_1/actions']
    assert replay.main([str(demos), '--out', str(tmp_path / 'replays.json')]) == 2
    assert 'demo_1: no actions in it' in capsys.readouterr().err


def test_what_a_step_of_the_simulator_returns_is_told_from_what_was_seen_before_it(tmp_path):
    """As LIBERO's converter and the scripts that replay its files note it; nothing of ours."""
    with LiberoEnv('libero_object', TASK, assets='builtin', render=False) as env:
        env.reset(0, seed=0)
        joints = env._env._observables['robot0_joint_pos']
        joints.set_enabled(True)
        env._env._get_observations(force_update=True)  # robosuite's reset ends so
        seen, states = [np.array(joints.obs)], []
        for action in np.random.default_rng(0).uniform(-0.5, 0.5, (10, 7)):
            states.append(env.state())
            env._env.step(action)
            seen.append(np.array(joints.obs))
    with h5py.File(tmp_path / 'steps.hdf5', 'w') as file:
        for name, noted in (('converter', seen[1:]), ('replayed', seen[:-1])):
            file[f'{name}/states'], file[f'{name}/obs/joint_states'] = states, noted
        assert observation_lag(file['converter']) == 1
        assert observation_lag(file['replayed']) == 0
