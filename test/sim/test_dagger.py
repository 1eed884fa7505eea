# SPDX-License-Identifier: Apache-2.0
"""Turns of a policy and the expert end in success, with labels that do not contradict."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from worldvla_ros.errors import ConfigError
from worldvla_ros.policy.settings import POLICY_FILE, PolicySettings
from worldvla_sim import collect
from worldvla_sim.dagger import LearnerSettings, Turns, learner_settings, record_turns
from worldvla_sim.expert.policy import ExpertPolicy
from worldvla_sim.libero_env import LiberoEnv
from worldvla_sim.policies import DriftPolicy, HoldPolicy

SETTINGS = LearnerSettings('hold', None)
TASK = 1


class WanderingPolicy:
    """Drifts about and opens and closes at random: wrong in every way."""

    needs_images, needs_wrist, image_size = False, False, None

    def start(self, env, observation):
        self._random, self._motion, self._gripper = np.random.default_rng(0), np.zeros(6), 1.0

    def act(self, observation):
        share = np.array([1, 1, 1, 0.12, 0.12, 0.12])
        self._motion = 0.9 * self._motion + 0.3 * share * self._random.normal(size=6)
        if self._random.random() < 0.1:
            self._gripper = -self._gripper
        return np.clip(np.append(self._motion, self._gripper), -1, 1)


@pytest.fixture(scope='module')
def env():
    with LiberoEnv('libero_object', TASK, image_size=16, assets='builtin') as env:
        yield env


@pytest.mark.parametrize(('learner', 'seed'), [(HoldPolicy(), 1), (WanderingPolicy(), 2)])
def test_the_expert_puts_right_what_a_policy_spoiled(env, learner, seed):
    recorder = record_turns(env, ExpertPolicy(), learner, SETTINGS, seed=seed, noise=0.1)
    assert recorder is not None
    demo = recorder.finish()
    assert 0.2 < demo.expert_acted.mean() < 0.9
    noise = (demo.executed_actions - demo.actions)[demo.expert_acted]
    assert np.abs(noise[:, :6]).max() < 0.6
    assert (noise[:, 6] == 0).all()
    assert np.abs((demo.executed_actions - demo.actions)[~demo.expert_acted]).max() > 0.5
    turned = np.flatnonzero(np.diff(demo.actions[:, 6]))
    assert len(turned) <= 12, f'the label of the gripper wavers: {turned}'


def test_random_mistakes_are_put_right(env):
    settings, motions, turned = learner_settings('drift'), [], []
    for seed in (3, 4, 5):  # an episode that goes well has one mistake or two
        recorder = record_turns(env, ExpertPolicy(), DriftPolicy(), settings, seed=seed, noise=0.0)
        assert recorder is not None
        demo = recorder.finish()
        for turn in np.split(np.arange(len(demo.actions)),
                             np.flatnonzero(np.diff(demo.expert_acted)) + 1):
            if demo.expert_acted[turn[0]]:
                continue
            motions.append(demo.executed_actions[turn])
            if turn[0] > 0:
                turned.append(motions[-1][0, 6] != demo.executed_actions[turn[0] - 1, 6])
    assert len(motions) > 2
    assert all((motion == motion[0]).all() for motion in motions)
    assert len({tuple(motion[0]) for motion in motions}) == len(motions)
    assert max(map(len, motions)) <= settings.policy_steps[1]
    assert np.abs([motion[0, :3] for motion in motions]).max() > 0.2
    assert not all(turned)


@pytest.mark.parametrize(('suite', 'task', 'holding'), [
    ('libero_object', 1, False), ('libero_goal', 0, True), ('libero_goal', 5, True),
    ('libero_goal', 7, True), ('libero_goal', 9, False), ('libero_10', 3, False),
    ('libero_10', 9, False)])
def test_labels_do_not_depend_on_when_the_expert_looked_first(suite, task, holding):
    """What holds an object goes on from a grasp that it planned; a fresh expert knows of none."""
    with LiberoEnv(suite, task, render=False, assets='builtin') as env:
        observation = env.reset(None, seed=2)
        watching, compared = ExpertPolicy(), 0
        watching.start(env, observation)
        while not env.success and env.steps < 120:
            action = watching.act(observation)
            if env.steps % 7 == 0 and (holding or action[6] < 0):
                fresh = ExpertPolicy()
                fresh.start(env, observation)
                np.testing.assert_allclose(fresh.act(observation), action, atol=0.1)
                compared += 1
            observation = env.step(action)
    assert compared > 4


def test_turns_repeat_with_their_seed_and_end_with_the_expert():
    first, second = Turns(SETTINGS, 280, seed=3), Turns(SETTINGS, 280, seed=3)
    acts = [first.expert_acts(step) for step in range(280)]
    assert acts == [second.expert_acts(step) for step in range(280)]
    assert acts != [Turns(SETTINGS, 280, seed=4).expert_acts(step) for step in range(280)]
    assert all(acts[168:])
    changes = np.flatnonzero(np.diff(acts))
    assert 2 <= len(changes) <= 14


def test_a_policy_that_is_not_there_or_is_the_expert_is_refused(tmp_path):
    with pytest.raises(ConfigError, match='unknown policy'):
        learner_settings(str(tmp_path / 'missing'))
    with pytest.raises(ConfigError, match='itself'):
        learner_settings('expert')
    assert learner_settings('hold') == SETTINGS


def test_a_wrist_camera_that_is_not_recorded_is_missed_by_a_policy_that_reads_it(env):
    policy = HoldPolicy()
    policy.needs_wrist = True
    with pytest.raises(ConfigError, match=r'needs the wrist camera.*--wrist'):
        record_turns(env, ExpertPolicy(), policy, SETTINGS, seed=0, noise=0.0)


def test_images_of_another_size_are_refused(env):
    policy = HoldPolicy()
    policy.image_size = 256
    with pytest.raises(ConfigError, match='--image-size 256'):
        record_turns(env, ExpertPolicy(), policy, SETTINGS, seed=0, noise=0.0)


def test_settings_survive_json_and_are_not_mixed(tmp_path):
    turns = collect.CollectionSettings('libero_object', 'builtin', learner=SETTINGS)
    plain = dataclasses.replace(turns, learner=None)
    collect._check_settings(tmp_path, turns)
    (tmp_path / 'task_demo.hdf5').touch()
    collect._check_settings(tmp_path, turns)
    with pytest.raises(ConfigError, match='other settings'):
        collect._check_settings(tmp_path, plain)


def test_a_folder_from_before_there_were_learners_goes_on(tmp_path):
    (tmp_path / 'collection.json').write_text('{"suite": "libero_object", "assets": "builtin"}')
    (tmp_path / 'task_demo.hdf5').touch()
    collect._check_settings(tmp_path, collect.CollectionSettings('libero_object', 'builtin'))


def test_a_learner_with_other_settings_or_tokenizers_is_not_mixed(tmp_path):
    """Pins a bug: only its weights were compared, and the same weights act otherwise with them."""
    folder, out = tmp_path / 'final', tmp_path / 'demos'
    folder.mkdir()
    save_file({'weight': np.zeros(3, np.float32)}, folder / 'model.safetensors')

    def resume(bin_choice):
        PolicySettings('stub', True, bin_choice=bin_choice).save(folder / POLICY_FILE)
        collect._check_settings(out, collect.CollectionSettings(
            'libero_object', 'builtin', learner=learner_settings(str(folder))))
    resume('mean')
    (out / 'task_demo.hdf5').touch()
    resume('mean')
    with pytest.raises(ConfigError, match='other settings'):
        resume('greedy')
    note = out / 'collection.json'
    older = json.loads(note.read_text())
    del older['learner']['beside_weights']
    note.write_text(json.dumps(older))
    resume('greedy')  # as far as an older folder says
    with pytest.raises(ConfigError, match='other settings'):
        resume('mean')
