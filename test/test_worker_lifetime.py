# SPDX-License-Identifier: Apache-2.0
"""How an inference worker fails and ends; it never outlives its node."""

from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
import os
from pathlib import Path
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from types import SimpleNamespace

import numpy as np
from processes import descriptors, is_alive
import pytest
from worker_processes import (
    FOREVER,
    ROOT,
    ask,
    new_backend,
    observation,
    wait_for,
)

from worldvla_ros.errors import InferenceError
from worldvla_ros.inference import worker_backend
from worldvla_ros.inference.backend import BackendInfo, Health
from worldvla_ros.inference.messages import Failed, Loaded, Ready
from worldvla_ros.inference.worker import NodeConnection

INFO = BackendInfo('a slow one', 5, 2, 256)


@pytest.fixture
def started_by_a_thread():
    """A worker without a restart in its budget, started by a thread that has ended."""
    backend = new_backend(heartbeat_timeout=2.0, max_restarts=0)
    starter = threading.Thread(target=backend.start)
    starter.start()
    starter.join()
    yield backend
    backend.stop()


def test_a_worker_outlives_the_thread_that_started_it(started_by_a_thread):
    """Pins a bug: with PR_SET_PDEATHSIG the kernel killed it when that thread ended."""
    time.sleep(0.2)
    assert ask(started_by_a_thread, 1).chunk is not None


def test_the_silence_of_a_worker_that_prepares_is_no_fault(started_by_a_thread):
    """Pins a bug: a preparation longer than the heartbeat timeout got the worker killed."""
    backend = started_by_a_thread
    os.kill(backend.process_id, signal.SIGSTOP)
    backend.prepare(observation().frames[:1], 'go')
    time.sleep(2.5)
    assert backend.poll() == [] and backend.health is Health.READY
    os.kill(backend.process_id, signal.SIGCONT)
    assert ask(backend, 1).chunk is not None


def test_an_idle_worker_that_falls_silent_fails_for_good_without_a_budget(started_by_a_thread):
    backend = started_by_a_thread
    pid = backend.process_id
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: backend.poll() or backend.health is not Health.READY)
    assert backend.health is Health.FAILED
    wait_for(lambda: not is_alive(pid))
    assert 'fell silent' in backend.fault and 'clean it up' in backend.fault
    assert backend.poll() == [] and backend.health is Health.FAILED
    with pytest.raises(InferenceError, match='failed'):
        backend.submit(1, observation())
    backend.stop()
    assert backend.health is Health.STOPPED


@pytest.mark.parametrize('waiting', [True, False])
def test_an_answer_that_waits_to_be_read_counts_before_a_deadline(waiting):
    """Pins a bug: after a stall of the node a healthy worker was killed for its silence."""
    backend = new_backend()
    backend.health, backend._connection = Health.READY, SimpleNamespace(poll=lambda _: waiting)
    backend._heartbeat = SimpleNamespace(expired=lambda _: True)
    backend._check_deadlines()
    assert (backend.health is Health.READY) == waiting


def test_a_worker_that_gives_up_is_replaced_and_says_why(undying):
    backend = new_backend(max_restarts=1)
    backend._launch()
    backend._inbox += [Loaded(INFO), Ready()]
    assert backend.poll() == [] and backend.health is Health.READY
    backend.submit(1, observation())
    backend._inbox.append(Failed('the device is lost', 'Traceback'))
    result, = backend.poll()
    assert result.chunk is None and result.error == backend.fault == 'the device is lost'
    assert (backend.health, backend.restarts) == (Health.LOADING, 1)
    for one in undying:
        one.let_go()
    backend.stop()


def test_stop_leaves_no_thread_and_no_descriptor_and_may_be_repeated():
    before, threads = descriptors(), threading.active_count()
    never_started = new_backend()
    never_started.stop()
    never_started.stop()
    backend = new_backend()
    with pytest.raises(InferenceError):
        backend.start(lambda: True)
    backend.stop()
    assert descriptors() == before and threading.active_count() == threads


class Undying:
    """A worker that sleeps in the kernel: it says nothing, and dies only when it is let go."""

    pid = 4_200_000  # above the largest id that Linux gives

    def __init__(self, command, *, pass_fds, **options):
        self._pipe = os.dup(pass_fds[0])
        self._let_go = threading.Event()
        self.kills = 0
        self.waiting = []  # threads that waited for it

    def kill(self):
        self.kills += 1

    def poll(self):
        return -signal.SIGKILL if self._let_go.is_set() else None

    def wait(self, timeout=None):
        self.waiting.append(threading.current_thread())
        if not self._let_go.wait(FOREVER if timeout is None else timeout):
            raise subprocess.TimeoutExpired('worker', timeout)
        return self.poll()

    def hang_up(self):
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None

    def let_go(self):
        self._let_go.set()
        self.hang_up()


@pytest.fixture
def undying(monkeypatch):
    """Return the workers that were started; none of them dies before the test ends."""
    started = []

    def start(*arguments, **options):
        started.append(Undying(*arguments, **options))
        return started[-1]
    monkeypatch.setattr(worker_backend.subprocess, 'Popen', start)
    monkeypatch.setattr(worker_backend, '_STOP_TIMEOUT', 0.1)
    yield started
    for one in started:
        one.let_go()


def within_seconds(call):
    """Call, and fail if that takes long; FOREVER is how long an undying worker takes to die."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(10.0)
    assert not thread.is_alive(), 'it waits for the worker to die'


def test_a_worker_that_does_not_die_does_not_hold_up_who_polls(undying):
    """Pins a bug: the control thread waited, without zero motion and deaf to the e-stop."""
    before, threads = descriptors(), threading.active_count()
    backend = new_backend(load_timeout=0.05, max_restarts=1)
    backend._launch()
    time.sleep(0.1)
    within_seconds(backend.poll)
    assert backend.health is Health.LOADING and backend.restarts == 1
    assert [one.kills for one in undying] == [1, 0]
    time.sleep(0.1)
    within_seconds(backend.poll)
    assert backend.health is Health.FAILED and 'did not load' in backend.fault
    assert [one.kills for one in undying] == [1, 1]
    for one in undying:
        one.let_go()
    backend.stop()
    assert descriptors() == before and threading.active_count() == threads


def test_stop_leaves_a_worker_that_does_not_die_to_the_kernel_and_says_so(undying, caplog):
    before, threads = descriptors(), threading.active_count()
    backend = new_backend()
    backend._launch()
    within_seconds(backend.stop)
    assert backend.health is Health.STOPPED and undying[0].kills == 1
    assert f'worker {Undying.pid}' in caplog.text and 'SIGKILL' in caplog.text
    undying[0].let_go()
    wait_for(lambda: descriptors() == before and threading.active_count() == threads)


def test_a_pipe_stays_open_while_its_reader_reads_it(undying):
    """Closed, its descriptor would become that of another file, which the reader would read."""
    backend = new_backend(load_timeout=0.05, max_restarts=0)
    backend._launch()
    connection = backend._connection
    time.sleep(0.1)
    within_seconds(backend.poll)
    assert backend.health is Health.FAILED and not connection.closed
    undying[0].let_go()
    wait_for(lambda: connection.closed)
    backend.stop()


def test_a_dead_worker_whose_exit_takes_time_does_not_hold_up_who_polls(undying):
    """Pins a bug: the control thread waited half a second for the exit status."""
    backend = new_backend(max_restarts=0)
    backend._launch()
    undying[0].hang_up()
    wait_for(lambda: backend.poll() or backend.health is Health.FAILED)
    assert 'the inference worker died;' in backend.fault
    assert threading.current_thread() not in undying[0].waiting
    undying[0].let_go()
    backend.stop()


def test_a_message_that_cannot_be_read_is_a_fault(undying):
    """Pins a bug: the thread that reads ended, and the node waited for ever and said running."""
    backend = new_backend(max_restarts=0)
    backend._launch()
    with Connection(os.dup(undying[0]._pipe)) as pipe:
        pipe.send_bytes(b'cnumpy._core.numeric_of_a_later_version\n_frombuffer\n.')
    wait_for(lambda: backend.poll() or backend.health is Health.FAILED)
    assert 'cannot read what the inference worker sent: ModuleNotFoundError' in backend.fault
    undying[0].let_go()
    backend.stop()


def test_a_worker_sends_what_an_older_python_can_read(monkeypatch):
    """Pins a bug: Python 3.14 pickles by protocol 5, for which NumPy 1.26 lacks a module."""
    monkeypatch.setattr(ForkingPickler, 'dumps', lambda message: pickle.dumps(message, 5))
    ours, theirs = Pipe()
    with ours, NodeConnection(os.dup(theirs.fileno())) as connection:
        theirs.close()
        connection.send(np.arange(7))
        assert b'_frombuffer' not in ours.recv_bytes()
        connection.send(INFO)
        assert ours.recv() == INFO


PARENT = textwrap.dedent('''
    import sys, time
    sys.path.insert(0, {test!r})
    from worker_processes import new_backend, observation
    backend = new_backend()
    if {wait}:
        backend.start()
        backend.submit(1, observation())
    else:
        backend._launch()
    print(backend.process_id, flush=True)
    time.sleep(600)
''')


@pytest.mark.parametrize('wait', [
    pytest.param(True, id='busy', marks=pytest.mark.slow), pytest.param(False, id='loading')])
def test_a_worker_is_gone_when_the_node_is_killed(wait):
    program = PARENT.format(test=str(Path(__file__).parent), wait=wait)
    with subprocess.Popen([sys.executable, '-c', program], stdout=subprocess.PIPE, text=True,
                          env={**os.environ, 'PYTHONPATH': str(ROOT)}) as parent:
        worker = int(parent.stdout.readline())
        assert is_alive(worker)
        parent.kill()
        parent.wait()
        wait_for(lambda: not is_alive(worker), timeout=20)
