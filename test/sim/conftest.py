# SPDX-License-Identifier: Apache-2.0
"""What several files of tests in simulation share."""

from pathlib import Path

from ablation_rows import finish, play
import pytest
import yaml

from worldvla_ros.policy.settings import POLICY_FILE, PolicySettings
from worldvla_sim.ablation import run
from worldvla_sim.ablation.plan import load_plan
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


@pytest.fixture
def fake_processes(monkeypatch):
    """Commands that only write what the real ones would; returns what was asked of them."""
    asked, failing = [], set()

    def run_one(self, module, arguments, log, *, threads=1):
        asked.append((module, log.parent.name))
        if (module, log.parent.name) in failing:
            raise run.AblationError('out of memory')
        if module.endswith('train'):
            stage = yaml.safe_load(Path(arguments[1]).read_text())
            finish(stage['run']['output'], stage['run']['steps'])
        else:
            plan = load_plan(log.parents[3] / 'plan.yaml')
            play(plan, next(row for row in plan.rows if row.name == log.parent.name), 1)
    monkeypatch.setattr(run.Processes, 'run', run_one)
    monkeypatch.setattr(run, '_POLL', 0.01)
    return asked, failing
