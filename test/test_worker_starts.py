# SPDX-License-Identifier: Apache-2.0
"""How an inference worker starts, and what keeps it from starting."""

from dataclasses import replace
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

from processes import descriptors, is_alive
import pytest
import torch
from worker_processes import (
    FOREVER,
    NO_CHECKPOINT,
    SETTINGS,
    new_backend,
)

from worldvla_ros.errors import InferenceError
from worldvla_ros.inference import worker_backend
from worldvla_ros.inference.backend import BackendInfo, Health
from worldvla_ros.inference.messages import Loaded, Progress, Ready
from worldvla_ros.inference.worker import load_policy


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


def test_a_checkpoint_without_settings_of_its_own_is_read_with_those_that_are_named():
    policy = load_policy(replace(SETTINGS, settings='worldvla_256_libero_10'))
    assert (policy.image_size, policy.horizon, policy.history_length) == (256, 10, 2)


def test_what_lies_in_the_current_folder_is_not_imported(tmp_path, monkeypatch):
    """Pins a bug: a torch.py, or another checkout, in the folder of `ros2 launch` was taken."""
    (tmp_path / 'torch.py').write_text('raise ImportError("the wrong one")')
    monkeypatch.chdir(tmp_path)
    backend = new_backend()
    try:
        assert backend.start().horizon and backend.health is Health.READY
    finally:
        backend.stop()
