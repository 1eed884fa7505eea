# SPDX-License-Identifier: Apache-2.0
"""The pool on a Ray cluster: against a stand-in, and against Ray itself where it is installed."""

from dataclasses import replace
import logging
import os
import secrets
import signal
import socket
import sys
import types

import pytest

from worldvla_ros.errors import ConfigError
from worldvla_sim import evaluate
from worldvla_sim.ray_pool import RayPool
from worldvla_sim.runner import EpisodeJob, EvaluationSettings
from worldvla_sim.workers import JobFailure

TOKEN = secrets.token_hex(32)  # of the real clusters; a process reads it once


class RayError(Exception):
    pass


class FakeRay(types.ModuleType):
    """The part of Ray's interface that the pool uses; actors live in this process.

    :ivar deadly: a job that kills its actor
    :ivar cores: actors that can run at once
    """

    def __init__(self, deadly=None, reachable=True, cores=9):
        super().__init__('ray')
        self.exceptions = types.SimpleNamespace(RayError=RayError)
        self.deadly, self.reachable, self.cores = deadly, reachable, cores
        self.made, self.killed, self.closed, self.connections, self.down = 0, 0, 0, [], 0

    def init(self, address, **options):
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(signal.SIGTERM))  # as Ray does
        if not self.reachable:
            raise ConnectionError('nobody there')
        self.connections.append({'address': address, **options})

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
        number = self.made

        def close():
            self.closed += 1
            return number, 'closed', None
        return types.SimpleNamespace(
            __ray_ready__=types.SimpleNamespace(remote=lambda: (number, 'ready', None)),
            answer=types.SimpleNamespace(
                remote=lambda job: (number, job, lambda: instance.answer(job))),
            close=types.SimpleNamespace(remote=close))

    def wait(self, references, num_returns, timeout=None):
        there = [one for one in references
                 if one[1] != 'ready' or one[0] <= self.cores + self.killed][-num_returns:]
        assert there or timeout, 'nothing would ever come'
        self.cores += not there  # one more gets free while the pool waits
        return there, [one for one in references if one not in there]

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
    with socket.create_server(('127.0.0.1', 0)) as server:
        address = f'127.0.0.1:{server.getsockname()[1]}'
        answers = dict(RayPool(make_square, 2, address).run(range(7)))
    assert {job: answers[job] for job in (0, 1, 2, 5, 6)} == {0: 0, 1: 1, 2: 4, 5: 25, 6: 36}
    assert answers[3] == JobFailure('ValueError: three')
    assert answers[4].reason == 'the worker died: RayError: the actor died'
    assert (fake.made, fake.killed, fake.down) == (3, 1, 1), 'two, and one in place of the dead'
    options, = fake.connections
    assert options['address'] == address
    assert options['runtime_env']['env_vars']['LP_NUM_THREADS'] == '1'


def test_an_actor_that_cannot_make_its_handler_leaves_its_jobs_to_the_others(ray, capfd):
    """A machine of the cluster without assets failed all the jobs beside one that had them."""
    fake, tried = ray(), []

    def make_on_some_machines():
        tried.append(1)
        if len(tried) < 3:
            raise ConfigError('no assets here')
        return make_square()
    jobs = [0, 1, 2, 5, 6]
    assert dict(RayPool(make_on_some_machines, 3, 'auto').run(jobs)) == {
        job: job * job for job in jobs}
    assert fake.killed == 2


def test_a_cluster_with_fewer_cores_than_workers_plays_everything(ray):
    """It waited for ever for actors that had no core."""
    fake = ray(cores=1)
    assert dict(RayPool(make_square, 3, 'auto').run([1, 2, 4, 5])) == {1: 1, 2: 4, 4: 16, 5: 25}
    assert fake.made == 3


def test_a_cluster_without_a_free_core_is_waited_for_and_told(ray, caplog):
    ray(cores=0)
    with caplog.at_level(logging.WARNING):
        assert dict(RayPool(make_square, 1, 'auto').run([2])) == {2: 4}
    assert 'waiting for a free CPU' in caplog.text


def test_actors_are_closed_and_no_jobs_need_no_cluster(ray):
    fake = ray()
    assert list(RayPool(make_square, 2, 'local').run([])) == [] and not fake.connections
    assert dict(RayPool(make_square, 1, 'local').run([1, 2])) == {1: 1, 2: 4}
    assert fake.closed == 1


def test_ending_early_shuts_the_connection_down(ray):
    fake = ray()
    before = signal.getsignal(signal.SIGTERM)
    episodes = RayPool(make_square, 2, 'local').run(range(7))
    next(episodes)
    assert signal.getsignal(signal.SIGTERM) is before, 'Ray takes it; ours saves what was played'
    episodes.close()
    assert fake.down == 1
    assert fake.connections[0]['address'] == 'local', 'None would join a cluster that runs here'
    assert fake.connections[0]['num_cpus'] == 2


def test_a_cluster_that_does_not_answer_is_a_clear_error(ray):
    fake = ray(reachable=False)
    with pytest.raises(ConfigError, match=r"'auto'.*nobody there.*ray start"):
        list(RayPool(make_square, 1, 'auto').run([1]))
    with pytest.raises(ConfigError, match='Ray does not start here: nobody there'):
        list(RayPool(make_square, 1, 'local').run([1]))
    fake.reachable = True
    with socket.create_server(('127.0.0.1', 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(ConfigError, match=rf"'127\.0\.0\.1:{port}'.*refused"):
        list(RayPool(make_square, 1, f'127.0.0.1:{port}').run([1]))


def test_without_ray_the_command_says_how_to_install_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'ray', None)  # as if it were not installed
    assert evaluate.main(['--policy', 'hold', '--suite', 'libero_object', '--tasks', '0',
                          '--assets', 'builtin', '--ray', 'local']) == 2
    assert 'requirements/optional/ray.txt' in capsys.readouterr().err


@pytest.fixture
def real_ray(monkeypatch):
    """Ray itself, with actors that find our modules, and nothing written to the home folder."""
    pytest.importorskip('ray', reason='Ray is not installed (requirements/optional/ray.txt)')
    monkeypatch.setenv('RAY_AUTH_TOKEN', TOKEN)
    monkeypatch.setenv('RAY_AUTH_MODE', '')  # Ray sets it; this puts back what was there
    monkeypatch.delenv('RAY_AUTH_MODE')
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join(filter(None, sys.path)))


def make_fragile_square():
    def square(number):
        if number == 4:
            os._exit(1)
        return make_square()(number)
    return square


def test_a_real_cluster_on_this_machine_answers_and_replaces_a_dead_worker(real_ray):
    answers = dict(RayPool(make_fragile_square, 2, 'local').run(range(7)))
    assert {job: answers[job] for job in (0, 1, 2, 5, 6)} == {0: 0, 1: 1, 2: 4, 5: 25, 6: 36}
    assert answers[3] == JobFailure('ValueError: three')
    assert 'the worker died: ActorDiedError' in answers[4].reason and '\n' not in answers[4].reason


@pytest.mark.slow  # starts a cluster and two simulators
def test_records_from_a_real_cluster_equal_those_in_process(real_ray):
    settings = EvaluationSettings('expert', 'libero_object', 'builtin', max_steps=20)
    jobs = [EpisodeJob(0, 0), EpisodeJob(0, 1)]
    here, there = (evaluate.evaluate(settings, jobs, ray=ray).records for ray in (None, 'local'))
    assert [replace(record, duration=0.0) for record in here] == [
        replace(record, duration=0.0) for record in there]
    assert not any(record.error for record in there)
