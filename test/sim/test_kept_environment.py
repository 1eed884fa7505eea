# SPDX-License-Identifier: Apache-2.0
"""One environment stays while the same is asked for."""

import pytest

from worldvla_ros.errors import SimulationError
from worldvla_sim import kept_environment
from worldvla_sim.kept_environment import KeptEnvironment


@pytest.fixture
def built(monkeypatch):
    """Every environment that was built, as a list; a task below 0 cannot be."""
    environments = []

    class Environment:
        def __init__(self, suite, task, **options):
            if task < 0:
                raise SimulationError('no such task')
            self.of, self.closed = (suite, task, options), False
            environments.append(self)

        def close(self):
            assert not self.closed
            self.closed = True
    monkeypatch.setattr(kept_environment, 'LiberoEnv', Environment)
    return environments


def test_it_stays_until_another_task_or_option_is_asked_for(built):
    kept = KeptEnvironment()
    assert kept.env is None
    first = kept.get('libero_goal', 1, msaa=0)
    assert kept.get('libero_goal', 1, msaa=0) is first is kept.env
    assert kept.get('libero_goal', 1, msaa=4) is not first and first.closed
    kept.get('libero_goal', 2, msaa=4)
    kept.close()
    kept.close()
    assert [one.closed for one in built] == [True] * 3 and kept.env is None


def test_there_is_none_after_one_that_could_not_be_built(built):
    kept = KeptEnvironment()
    first = kept.get('libero_goal', 1)
    with pytest.raises(SimulationError):
        kept.get('libero_goal', -1)
    assert first.closed and kept.env is None
    assert kept.get('libero_goal', 1) is not first
