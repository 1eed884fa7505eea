# SPDX-License-Identifier: Apache-2.0
"""The checkpoint that the package ships: small, whole, and able to do what its card says."""

from pathlib import Path

import numpy as np
import pytest

from worldvla_ros.datatypes import Frame
from worldvla_ros.policy.named_checkpoints import SHIPPED, locate_checkpoint
from worldvla_ros.policy.pretrained import Pretrained
from worldvla_ros.policy.world_model import WorldModel
from worldvla_sim.evaluate import evaluate
from worldvla_sim.libero_env import LiberoEnv
from worldvla_sim.runner import EpisodeJob, EvaluationSettings

MEGABYTE = 1e6
JOBS = [EpisodeJob(0, 0), EpisodeJob(7, 0), EpisodeJob(9, 0)]


@pytest.fixture(scope='module')
def folder():
    return Path(locate_checkpoint(SHIPPED))


def test_it_is_small_enough_for_git_and_has_a_card(folder):
    files = [path for path in folder.rglob('*') if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 40 * MEGABYTE
    assert max(path.stat().st_size for path in files) < 16 * MEGABYTE
    assert '## Limits' in (folder / 'README.md').read_text()


def test_it_does_tasks_from_official_initial_states():
    """Other machines round differently, so not every episode need end as on the card's."""
    results = evaluate(EvaluationSettings(SHIPPED, 'libero_object', 'builtin'), JOBS)
    assert all(record.error is None for record in results.records)
    assert sum(record.success for record in results.records) >= 2


def test_its_world_model_follows_the_actions(folder):
    """Imagined codes are nearer to the frame that the actions led to than the first ones are."""
    world = WorldModel.from_pretrained(folder, dtype='float32')
    env = LiberoEnv('libero_object', 0, assets='builtin', image_size=192)
    action = np.array([0.9, 0.0, -0.9, 0.0, 0.0, 0.0, -1.0])
    try:
        first = env.reset(0).agentview
        for _ in range(8):
            real = env.step(action).agentview
    finally:
        env.close()
    world.reset(Frame(first, 0))
    for _ in range(8):
        imagined = world.step(action)
    encode = Pretrained.load(folder).encode
    reached, started = encode(real), encode(first)
    changed = reached != started
    assert (imagined.codes[changed] != started[changed]).mean() > 0.3  # it moves the arm
    assert (imagined.codes == reached).mean() > (started == reached).mean()
