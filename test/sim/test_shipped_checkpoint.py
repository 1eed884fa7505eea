# SPDX-License-Identifier: Apache-2.0
"""The checkpoint that the package ships: small, whole, and able to do what its card says."""

from contextlib import closing
from itertools import islice
from pathlib import Path
import re

import numpy as np
import pytest

from worldvla_ros.datatypes import Frame
from worldvla_ros.policy.named_checkpoints import SHIPPED, locate_checkpoint
from worldvla_ros.policy.pretrained import Pretrained
from worldvla_ros.policy.world_model import WorldModel
from worldvla_ros.training.held_out_clips import Clip
from worldvla_ros.training.world_metrics import Judges, measure
from worldvla_ros.training.world_report import CODED_COPY, MODEL, Report
from worldvla_sim.libero_env import LiberoEnv
from worldvla_sim.promote import CARD_FILE, shipped_evidence, successes
from worldvla_sim.runner import EpisodeJob, EpisodeRunner, EvaluationSettings, RunOptions

MEGABYTE = 1e6
STEPS_AHEAD = 16  # of which each is imagined from the real frame before
JOBS = {  # suite, and episodes that succeed on the card's machine, of task and initial state
    'worldvla-mini': ('libero_object', [(7, 0), (8, 0), (9, 0)]),  # the demo's
    'worldvla-mini-libero': ('libero_goal', [(0, 0), (6, 0), (8, 0), (8, 1)])}


@pytest.fixture(scope='module', params=SHIPPED)
def name(request):
    return request.param


@pytest.fixture(scope='module')
def folder(name):
    return Path(locate_checkpoint(name))


def test_it_is_small_enough_for_git_and_has_a_card(folder):
    files = [path for path in folder.rglob('*') if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 40 * MEGABYTE
    assert max(path.stat().st_size for path in files) < 16 * MEGABYTE
    assert '## Limits' in (folder / 'README.md').read_text()


def test_its_evaluations_are_of_these_weights_and_of_every_task_over_ros(folder):
    for suite, results in shipped_evidence(folder).items():
        states = {record.init_state for record in results.records}
        assert states == set(range(len(states)))
        assert {(record.task, record.init_state) for record in results.records} == {
            (task, state) for task in range(10) for state in states}
        assert {(record.suite, record.assets, record.over, record.mode)
                for record in results.records} == {(suite, 'builtin', 'ros', 'lockstep')}
        weights = results.settings['checkpoint'].rpartition(' ')[-1]
        assert all(record.policy.endswith(weights) for record in results.records)


def test_its_card_states_the_totals_of_its_evaluations(folder):
    reached = sorted(f'{successes(results)} of {len(results.records)}'
                     for results in shipped_evidence(folder).values())
    stated = re.findall(r'\*\*(\d+ of \d+)\b', (folder / CARD_FILE).read_text())
    assert sorted(stated) == reached


def test_it_does_tasks_from_official_initial_states(name):
    """Other machines round differently, so not every episode need end as on the card's."""
    suite, episodes = JOBS[name]
    runner = EpisodeRunner(EvaluationSettings(name, suite, 'builtin'), RunOptions())
    played = (runner(EpisodeJob(task, state)) for task, state in episodes)
    with closing(runner):
        two = list(islice((record for record in played if record.success), 2))
    assert len(two) == 2


def test_its_world_model_foresees_some_change_and_is_no_worse_than_the_tokenizers_copy(
        name, folder):
    """One step ahead of real frames; see the card for how little that is on held-out episodes.

    A model that returns its input has no changed code right, one that imagines anything keeps few
    of the others, and one that blurs gains nothing: the copy is as blurred.
    """
    pretrained = Pretrained.load(folder, dtype='float32')
    world = WorldModel(pretrained)
    env = LiberoEnv(JOBS[name][0], 0, assets='builtin', image_size=pretrained.settings.image_size)
    action = np.array([0.9, 0.0, -0.9, 0.0, 0.0, 0.0, -1.0])
    frames, imagined = [env.reset(0).agentview], []
    try:
        for number in range(STEPS_AHEAD):
            world.reset(Frame(frames[-1], number))
            imagined.append(world.step(action).codes)
            frames.append(env.step(action).agentview)
    finally:
        env.close()
    measured = [measure(Clip('', '', 0, np.stack(frames[step:step + 2]), action[None]),
                        codes[None], pretrained, Judges(), (1,))[0]
                for step, codes in enumerate(imagined)]
    rows = {row.frames: row for row in Report(
        name, '', [], 0, 0, 0, False, '', False, (1,),
        {predictor: [one[predictor] for one in measured] for predictor in measured[0]}).rows()}
    assert rows[MODEL].changed_right > 0.005
    assert rows[MODEL].kept > 0.75
    assert rows[MODEL].moved_psnr > rows[CODED_COPY].moved_psnr - 0.5
