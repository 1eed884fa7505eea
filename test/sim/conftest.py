# SPDX-License-Identifier: Apache-2.0
"""What several files of tests in simulation share."""

import pytest

from worldvla_ros.policy.settings import POLICY_FILE, PolicySettings
from worldvla_sim.libero_env import LiberoEnv


@pytest.fixture(scope='module')
def tabletop():
    """The scene of libero_goal, without pictures; who changes it resets it."""
    with LiberoEnv('libero_goal', 3, render=False, assets='builtin') as env:
        env.reset(0)
        yield env


@pytest.fixture
def checkpoint(tmp_path):
    """A folder of which only policy.json is read: five actions per chunk."""
    (tmp_path / 'checkpoint').mkdir()
    PolicySettings('stub', False).save(tmp_path / 'checkpoint' / POLICY_FILE)
    return str(tmp_path / 'checkpoint')
