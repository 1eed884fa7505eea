# SPDX-License-Identifier: Apache-2.0
"""The pool on a Ray cluster, against a stand-in for Ray: it is not among the requirements."""

import sys
import types

import pytest

from worldvla_ros.errors import ConfigError
from worldvla_sim import evaluate
from worldvla_sim.ray_pool import RayPool
from worldvla_sim.workers import JobFailure


class RayError(Exception):
    pass


class FakeRay(types.ModuleType):
    """The part of Ray's interface that the pool uses; actors live in this process.

    :ivar deadly: a job that kills its actor
    """

    def __init__(self, deadly=None, reachable=True):
        super().__init__('ray')
        self.exceptions = types.SimpleNamespace(RayError=RayError)
        self.deadly, self.reachable = deadly, reachable
        self.made, self.killed, self.connections, self.down = 0, 0, [], 0

    def init(self, **options):
        if not self.reachable:
            raise ConnectionError('nobody there')
        self.connections.append(options)

    def shutdown(self):
        self.down += 1

    def kill(self, actor):
        self.killed += 1

    def remote(self, **options):
        assert options == {'num_cpus': 1}
        return lambda kind: types.SimpleNamespace(
            remote=lambda *arguments: self._actor(kind(*arguments)))

    def _actor(self, instance):
        self.made += 1
        return types.SimpleNamespace(answer=types.SimpleNamespace(
            remote=lambda job: (self.made, job, lambda: instance.answer(job))))

    def wait(self, references, num_returns):
        return references[-num_returns:], references[:-num_returns]

    def get(self, reference):
        _, job, answer = reference
        if job == self.deadly:
            raise RayError('the actor died')
        return answer()


def make_square():
    def square(number):
        if number == 3:
            raise ValueError('three')
        return number * number
    return square


@pytest.fixture
def ray(monkeypatch):
    def install(**options):
        fake = FakeRay(**options)
        monkeypatch.setitem(sys.modules, 'ray', fake)
        return fake
    return install


def test_jobs_are_answered_by_actors_and_failures_have_a_reason(ray, capfd):
    fake = ray(deadly=4)
    answers = dict(RayPool(make_square, 2, '10.0.0.1:6379').run(range(7)))
    assert {job: answers[job] for job in (0, 1, 2, 5, 6)} == {0: 0, 1: 1, 2: 4, 5: 25, 6: 36}
    assert answers[3] == JobFailure('ValueError: three')
    assert 'the actor died' in answers[4].reason
    assert (fake.made, fake.killed, fake.down) == (3, 1, 1), 'two, and one in place of the dead'
    options, = fake.connections
    assert options['address'] == '10.0.0.1:6379'
    assert options['runtime_env']['env_vars']['LP_NUM_THREADS'] == '1'


def test_ending_early_shuts_the_connection_down(ray):
    fake = ray()
    episodes = RayPool(make_square, 2, 'local').run(range(7))
    next(episodes)
    episodes.close()
    assert fake.down == 1 and 'address' not in fake.connections[0]


def test_a_cluster_that_does_not_answer_is_a_clear_error(ray):
    ray(reachable=False)
    with pytest.raises(ConfigError, match=r"'auto'.*nobody there.*ray start"):
        list(RayPool(make_square, 1, 'auto').run([1]))


def test_without_ray_the_command_says_how_to_install_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'ray', None)  # as if it were not installed
    assert evaluate.main(['--policy', 'hold', '--suite', 'libero_object', '--tasks', '0',
                          '--assets', 'builtin', '--ray', 'local']) == 2
    assert 'pip install "ray[default]"' in capsys.readouterr().err


def test_a_real_cluster_on_this_machine_answers():
    pytest.importorskip('ray', reason='Ray is not among the requirements')
    assert dict(RayPool(make_square, 1, 'local').run([2])) == {2: 4}
