# SPDX-License-Identifier: Apache-2.0
"""How much of the expert's answer to a moved object is in a policy's."""

import numpy as np
import pytest

from worldvla_sim import sight
from worldvla_sim.expert.policy import ExpertPolicy
from worldvla_sim.libero_env import LiberoEnv
from worldvla_sim.policies import POLICIES
from worldvla_sim.sight import MOVES, followed, look


class HalfHearted(ExpertPolicy):
    """Does half of what the expert does, and always a little more to one side."""

    def act(self, observation):
        return 0.5 * super().act(observation) + 0.1


class ByHeart(HalfHearted):
    """Does not look."""

    def act(self, observation):
        return np.full(7, 0.3)


@pytest.mark.parametrize(('policy', 'share'), [
    (ExpertPolicy(), 1.0), (HalfHearted(), 0.5), (ByHeart(), 0.0)])
def test_the_share_is_what_a_policy_does_of_what_the_expert_does(policy, share):
    with LiberoEnv('libero_object', 0, assets='builtin', image_size=16) as env:
        answers = look(env, policy, seed=1)
        assert [one.axis for one in answers] == [0, 1]
        assert env.steps > 5
    for one in answers:
        assert set(one.moves) <= set(MOVES) and len(one.moves) > 3
        assert np.ptp(one.expert) > 1.0, 'from one way to the other'
    assert followed(answers) == pytest.approx(share, abs=1e-6)


@pytest.mark.parametrize(('suite', 'task'), [
    ('libero_goal', 0),  # a drawer
    ('libero_spatial', 3)])  # a bowl that stands on a box
def test_a_task_that_takes_nothing_from_the_table_is_left_out(suite, task):
    with LiberoEnv(suite, task, assets='builtin', image_size=16) as env:
        assert look(env, ExpertPolicy(), seed=1) == []
    assert np.isnan(followed([]))


def test_the_command_prints_a_row_per_task_and_says_whose_it_is(monkeypatch, capsys):
    monkeypatch.setitem(POLICIES, 'half', HalfHearted)
    assert sight.main(['--policy', 'half', '--suite', 'libero_object', '--tasks', '0,1',
                       '--layouts', '1', '--assets', 'builtin']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:4] for line in lines[1:4]] == [
        ['0', '1', '0.50', '0.50'], ['1', '1', '0.50', '0.50'], ['all', '2', '0.50', '0.50']]
    assert lines[-1] == 'libero_object; half; builtin assets; seeds 4294900000 to 4294900000'


def test_an_unknown_policy_is_refused(capsys):
    assert sight.main(['--policy', 'none', '--suite', 'libero_object']) == 2
    assert 'none' in capsys.readouterr().err
