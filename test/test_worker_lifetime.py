# SPDX-License-Identifier: Apache-2.0
"""How an inference worker starts and ends; it never outlives its node."""

from dataclasses import replace
import errno
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
import torch
from worker_processes import (
    FOREVER,
    NO_CHECKPOINT,
    ROOT,
    SETTINGS,
    ask,
    new_backend,
    observation,
    wait_for,
)

from worldvla_ros.errors import InferenceError
from worldvla_ros.inference import worker_backend
from worldvla_ros.inference.backend import BackendInfo, Health
from worldvla_ros.inference.messages import Failed, Loaded, Progress, Ready
from worldvla_ros.inference.worker import NodeConnection, load_policy

# --- started by a thread that has ended -------------------------------------------------------


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


def test_a_worker_that_cannot_be_started_again_is_a_fault_and_not_the_end(monkeypatch):
    """
    Pins a bug: without memory or processes left, the error ended the node.

    And another: all restarts were spent within a few polls, long before the want was over.
    """
    now = [1000.0]
    monkeypatch.setattr(worker_backend, 'time', SimpleNamespace(
        monotonic=lambda: now[0], monotonic_ns=time.monotonic_ns))
    monkeypatch.setattr(subprocess, 'Popen', _no_processes_left)
    backend, before = new_backend(max_restarts=3), descriptors()
    backend.health = Health.DOWN
    for number, delay in enumerate((1.0, 2.0, 4.0)):
        for _ in range(5):
            assert backend.poll() == [] and backend.health is Health.DOWN
            assert backend.restarts == number + 1 and descriptors() == before
        assert 'cannot be started: [Errno 11]' in backend.fault
        now[0] += delay
    assert backend.poll() == [] and backend.health is Health.FAILED


def _no_processes_left(*_, **__):
    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


# --- start and stop ---------------------------------------------------------------------------


def test_a_checkpoint_that_does_not_exist_fails_the_start_with_the_reason():
    """Interrupts meanwhile pin a bug: before it could ignore Ctrl-C, it died of it."""
    before, threads = descriptors(), threading.active_count()
    backend = new_backend(NO_CHECKPOINT)
    with pytest.raises(InferenceError, match='/nowhere/at/all') as caught:
        backend.start(lambda: os.kill(backend.process_id, signal.SIGINT))
    assert 'Traceback' not in str(caught.value)
    assert backend.process_id is None and backend.health is Health.STOPPED
    assert descriptors() == before and threading.active_count() == threads


def python_with(tmp_path, torch_is_there):
    """Return an interpreter of another name, with torch or without."""
    (tmp_path / 'torch.py').write_text('raise ModuleNotFoundError("No module named \'torch\'")')
    hidden = '' if torch_is_there else f'PYTHONPATH={tmp_path}:$PYTHONPATH'
    path = tmp_path / 'python'
    path.write_text(f'#!/bin/sh\n{hidden} exec {sys.executable} "$@"\n')
    path.chmod(0o700)
    return str(path)


def test_a_worker_runs_on_the_python_that_has_torch_though_the_node_does_not(tmp_path):
    backend = new_backend(python=python_with(tmp_path, True))
    try:
        assert backend.start().horizon == 5
    finally:
        backend.stop()


def test_a_python_without_torch_is_told_with_what_to_set(tmp_path):
    with pytest.raises(InferenceError, match=r"No module named 'torch' for /.*set worker\.python"):
        new_backend(python=python_with(tmp_path, False)).start()


@pytest.mark.parametrize('python', ['~/no/python', '~'])
def test_a_python_that_cannot_be_started_is_told_by_name(tmp_path, monkeypatch, python):
    """Pins a bug: configure showed a traceback, and ~ stood for nothing."""
    monkeypatch.setenv('HOME', str(tmp_path))
    before = descriptors()
    backend = new_backend(python=python)
    with pytest.raises(InferenceError, match=f'worker.python, which is .{tmp_path}'):
        backend.start()
    assert backend.health is Health.STOPPED and descriptors() == before


def test_weights_that_the_device_cannot_take_fail_the_start_with_the_reason():
    backend = new_backend(replace(SETTINGS, weights='fp8'))
    with pytest.raises(InferenceError, match=r"'fp8' need a CUDA device.*'dense'") as caught:
        backend.start()
    assert 'Traceback' not in str(caught.value) and backend.health is Health.STOPPED


def test_a_start_can_be_given_up():
    backend = new_backend()
    pids = []

    def give_up():
        pids.append(backend.process_id)
        return True
    with pytest.raises(InferenceError, match='interrupted'):
        backend.start(give_up)
    assert not is_alive(pids[0]) and backend.process_id is None


def test_a_worker_that_loads_for_too_long_is_given_up():
    backend = new_backend(load_timeout=0.2)
    with pytest.raises(InferenceError, match='load_timeout'):
        backend.start()
    assert backend.process_id is None


@pytest.fixture
def warming_up(monkeypatch):
    """Return a backend whose worker hangs, a clock, and what sends a message in its place."""
    now = [0.0]
    monkeypatch.setattr(worker_backend, 'time', SimpleNamespace(
        monotonic=lambda: now[0], monotonic_ns=time.monotonic_ns, sleep=time.sleep))
    backend = new_backend(max_restarts=0)
    launch = backend._launch

    def launch_and_hang():
        launch()
        os.kill(backend.process_id, signal.SIGSTOP)
    monkeypatch.setattr(backend, '_launch', launch_and_hang)

    def send(message):
        with backend._lock:
            backend._inbox.append(message)
    yield backend, now, send
    backend.stop()


INFO = BackendInfo('a slow one', 5, 2, 256)


def test_a_warm_up_may_take_long_while_it_gets_on(warming_up):
    """Pins a bug: compiling and capturing on a GPU took longer than the whole load may."""
    backend, now, send = warming_up
    backend._launch()
    for message in (Loaded(INFO), Progress('one graph'), Progress('another')):
        now[0] += 0.9 * FOREVER
        send(message)
        assert backend.poll() == [] and backend.health is Health.LOADING
    now[0] += 1.1 * FOREVER
    assert backend.poll() == [] and backend.health is Health.FAILED
    assert 'hung in its warm-up' in backend.fault and 'load_timeout' in backend.fault


def test_a_long_warm_up_does_not_hold_up_its_caller(warming_up):
    backend, now, send = warming_up

    def not_aborted():
        now[0] += 0.6 * FOREVER
        send(Loaded(INFO))
        return False
    assert backend.start(not_aborted) == INFO
    assert backend.health is Health.LOADING and 'warming up' in backend.fault
    send(Ready())
    backend.poll()
    assert backend.health is Health.READY and backend.fault == ''


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


@pytest.mark.parametrize('cores, threads', [({3, 5, 8, 9}, 3), ({7}, 1)])
def test_a_worker_takes_all_cores_that_it_may_use_but_one(cores, threads, monkeypatch):
    """Pins a bug: pinned to 4 of 64 cores, it started 63 threads."""
    from worldvla_ros.policy.policy import WorldVLAPolicy
    taken = []
    monkeypatch.setattr(os, 'cpu_count', lambda: 64)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: cores)
    monkeypatch.setattr(torch, 'set_num_threads', taken.append)
    monkeypatch.setattr(WorldVLAPolicy, 'from_pretrained', lambda *_, **__: None)
    for asked in (0, 2):
        load_policy(replace(SETTINGS, threads=asked))
    assert taken == [threads, 2]


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


def test_a_checkpoint_without_settings_of_its_own_is_read_with_those_that_are_named():
    policy = load_policy(replace(SETTINGS, settings='worldvla_256_libero_10'))
    assert (policy.image_size, policy.horizon, policy.history_length) == (256, 10, 2)


# --- started from any folder ------------------------------------------------------------------


def test_what_lies_in_the_current_folder_is_not_imported(tmp_path, monkeypatch):
    """Pins a bug: a torch.py, or another checkout, in the folder of `ros2 launch` was taken."""
    (tmp_path / 'torch.py').write_text('raise ImportError("the wrong one")')
    monkeypatch.chdir(tmp_path)
    backend = new_backend()
    try:
        assert backend.start().horizon and backend.health is Health.READY
    finally:
        backend.stop()
