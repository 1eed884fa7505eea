# SPDX-License-Identifier: Apache-2.0
"""The inference worker, a real process: it answers, dies, hangs, comes back and never outlives."""

from dataclasses import replace
import os
from pathlib import Path
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
from state_policies import state_checkpoint

from worldvla_ros.datatypes import Frame, Observation
from worldvla_ros.errors import FrameError, InferenceError
from worldvla_ros.inference.backend import Health
from worldvla_ros.inference.inproc_backend import InprocBackend
from worldvla_ros.inference.messages import WorkerSettings
from worldvla_ros.inference.worker_backend import WorkerBackend

ROOT = Path(__file__).parents[1]
PERIOD = 50_000_000
SETTINGS = WorkerSettings(checkpoint='random', subfolder='', device='cpu', dtype='float32',
                          num_actions=0, threads=1, frame_memory=1_000_000)
NO_CHECKPOINT = WorkerSettings(checkpoint='/nowhere/at/all', subfolder='', device='cpu',
                               dtype='float32', num_actions=0, threads=1, frame_memory=1_000_000)
FOREVER = 60.0


def new_backend(settings=SETTINGS, **options):
    return WorkerBackend(settings, **{
        'load_timeout': FOREVER, 'answer_timeout': FOREVER, 'heartbeat_timeout': FOREVER,
        'max_restarts': 100, 'restart_window': FOREVER, **options})


@pytest.fixture(scope='module')
def started():
    """One worker for the whole module; a test that harms it must wait until it is back."""
    backend = new_backend()
    backend.start()
    yield backend
    pid = backend.process_id
    assert is_alive(pid)
    backend.stop()
    assert not is_alive(pid)


@pytest.fixture
def backend(started):
    """The shared worker, ready and idle."""
    assert started.health is Health.READY and not started.busy
    return started


def noise(seed):
    return np.random.default_rng(seed).integers(0, 256, (256, 256, 3), np.uint8)


def observation(seed=0, instruction='pick up the milk and place it in the basket'):
    return Observation((Frame(noise(seed), PERIOD), Frame(noise(seed + 1), 2 * PERIOD)),
                       instruction)


def wait_for(predicate, timeout=FOREVER):
    deadline = time.monotonic() + timeout
    while not predicate():
        assert time.monotonic() < deadline, 'waited in vain'
        time.sleep(0.01)


def result_of(backend, request, timeout=FOREVER):
    """Poll until a request is answered."""
    results = []
    wait_for(lambda: results.extend(backend.poll()) or results, timeout)
    assert [one.request for one in results] == [request]
    return results[0]


def ask(backend, request, asked=None):
    backend.submit(request, asked or observation())
    return result_of(backend, request)


def wait_until_ready(backend):
    wait_for(lambda: backend.poll() or backend.health is Health.READY)


def is_alive(pid):
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] not in 'ZX'
    except FileNotFoundError:
        return False


def descriptors():
    return len(list(Path('/proc/self/fd').iterdir()))


# --- answers ----------------------------------------------------------------------------------


def test_a_worker_answers_with_exactly_the_chunk_that_this_process_computes(backend):
    inproc = InprocBackend(SETTINGS)
    told = threading.Event()
    inproc._on_result = told.set
    try:
        assert inproc.start() == backend._info
        assert inproc.health is Health.READY and inproc.poll() == []
        for seed, hinted in ((3, False), (4, True)):
            for one in (inproc, backend) if hinted else ():
                one.prepare(observation(seed).frames[0], observation().instruction)
            inproc.submit(seed, observation(seed))
            with pytest.raises(InferenceError, match='busy'):
                inproc.submit(seed, observation(seed))
            assert told.wait(FOREVER)
            told.clear()
            expected = result_of(inproc, seed).chunk
            chunk = ask(backend, seed, observation(seed)).chunk
            np.testing.assert_array_equal(chunk.actions, expected.actions)
            np.testing.assert_array_equal(chunk.token_ids, expected.token_ids)
            np.testing.assert_array_equal(chunk.entropy, expected.entropy)
            assert chunk.frame_stamps_ns == expected.frame_stamps_ns == (PERIOD, 2 * PERIOD)
            assert chunk.instruction == expected.instruction
            assert 0 < chunk.latency.encode < chunk.latency.total
        inproc.submit(9, Observation((), 'go'))
        assert 'frames, got 0' in result_of(inproc, 9).error
    finally:
        inproc.stop()
    assert not [one for one in threading.enumerate() if one.name.startswith('policy')]


def test_the_state_of_the_arm_reaches_a_policy_that_reads_it(backend, tmp_path):
    frames = tuple(Frame(noise(seed)[:64, :64], seed * PERIOD) for seed in (1, 2))
    states = (None, np.zeros(7), np.full(7, 0.5))
    settings = replace(SETTINGS, checkpoint=str(state_checkpoint(tmp_path / 'tiny')))
    feeling, inproc = new_backend(settings), InprocBackend(settings)
    assert not backend._info.reads_state
    try:
        assert feeling.start() == inproc.start() and feeling._info.reads_state
        answers = []
        for number, state in enumerate(states):
            asked = Observation(frames, 'go', state)
            inproc.submit(number, asked)
            answers.append((ask(feeling, number, asked), result_of(inproc, number)))
    finally:
        feeling.stop()
        inproc.stop()
    missing, *chunks = answers
    assert all(one.chunk is None and 'state of the arm' in one.error for one in missing)
    for one, other in chunks:
        np.testing.assert_array_equal(one.chunk.token_ids, other.chunk.token_ids)
    assert (chunks[0][0].chunk.token_ids != chunks[1][0].chunk.token_ids).any()


def test_frames_of_any_layout_give_the_same_chunk(backend):
    plain = observation(5)
    mirrored = Observation(tuple(
        Frame(np.ascontiguousarray(one.image[..., ::-1])[..., ::-1], one.stamp_ns)
        for one in plain.frames), plain.instruction)
    np.testing.assert_array_equal(ask(backend, 1, plain).chunk.actions,
                                  ask(backend, 2, mirrored).chunk.actions)


def test_a_hint_changes_no_result_whether_it_was_right_or_wrong(backend):
    expected = ask(backend, 1, observation(7)).chunk
    ask(backend, 2, observation(70))
    for number, hinted in ((3, observation(7).frames[0]), (4, observation(99).frames[0])):
        backend.prepare(hinted, observation().instruction)
        np.testing.assert_array_equal(
            ask(backend, number, observation(7)).chunk.actions, expected.actions)
        ask(backend, 10 + number, observation(70))


def test_an_observation_it_cannot_use_is_answered_with_the_reason_and_it_lives_on(backend):
    pid = backend.process_id
    result = ask(backend, 1, observation(instruction='word ' * 400))
    assert result.chunk is None and 'instruction' in result.error
    assert 'Traceback' not in result.error
    assert ask(backend, 2).chunk is not None
    assert backend.process_id == pid and backend.restarts == 0


def test_frames_too_large_are_refused_and_leave_it_free(backend):
    """Pins a bug: the refused request counted as in flight, for ever."""
    large = Frame(np.ones((1000, 1000, 3), np.uint8), PERIOD)
    with pytest.raises(FrameError, match='frame_memory_mb'):
        backend.submit(1, Observation((large,), 'go'))
    assert not backend.busy
    backend.prepare(large, 'go')
    assert ask(backend, 2).chunk is not None


def test_one_request_at_a_time(backend):
    backend.submit(1, observation())
    with pytest.raises(InferenceError, match='busy'):
        backend.submit(2, observation())
    assert result_of(backend, 1).chunk is not None


def test_it_tells_when_there_is_something_to_collect(backend):
    told = threading.Event()
    backend._on_result = told.set
    try:
        backend.submit(1, observation())
        assert told.wait(FOREVER)
        assert [one.request for one in backend.poll()] == [1]
    finally:
        backend._on_result = lambda: None


def test_it_shows_signs_of_life_and_its_memory(backend):
    wait_for(lambda: backend.poll() == [] and backend.memory_bytes > 100_000_000)
    backend.poll()
    assert 0 <= backend.heartbeat_age < FOREVER
    assert backend.fault == ''


def test_it_ignores_an_interrupt_from_the_terminal(backend):
    pid = backend.process_id
    os.kill(pid, signal.SIGINT)
    assert ask(backend, 1).chunk is not None
    assert backend.process_id == pid


def test_the_node_s_side_never_loads_torch():
    program = ('import sys, worldvla_ros.inference.worker_backend, worldvla_ros.control.controller'
               '\nassert "torch" not in sys.modules')
    subprocess.run([sys.executable, '-c', program], check=True, cwd=ROOT,
                   env={**os.environ, 'PYTHONPATH': str(ROOT)})


# --- death and hanging (rule f) ---------------------------------------------------------------


def test_a_killed_worker_fails_its_request_and_is_replaced(backend):
    pid, restarts = backend.process_id, backend.restarts
    expected = ask(backend, 1).chunk
    os.kill(pid, signal.SIGSTOP)
    backend.submit(2, observation())
    os.kill(pid, signal.SIGKILL)
    result = result_of(backend, 2)
    assert result.chunk is None and 'died by signal 9' in result.error
    assert backend.health is Health.LOADING and not backend.busy
    assert backend.restarts == restarts + 1 and not is_alive(pid)
    with pytest.raises(InferenceError, match='loading'):
        backend.submit(3, observation())
    wait_until_ready(backend)
    assert backend.fault == '' and backend.process_id != pid
    np.testing.assert_array_equal(ask(backend, 4).chunk.actions, expected.actions)


def test_a_hung_worker_is_killed_and_replaced(backend):
    pid = backend.process_id
    os.kill(pid, signal.SIGSTOP)
    backend._answer_timeout = 0.3
    try:
        backend.submit(1, observation())
    finally:
        backend._answer_timeout = FOREVER
    result = result_of(backend, 1)
    assert result.chunk is None and 'did not answer within' in result.error
    assert not is_alive(pid) and backend.health is Health.LOADING
    wait_until_ready(backend)
    assert ask(backend, 2).chunk is not None


@pytest.fixture(scope='module')
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
    backend.prepare(observation().frames[0], 'go')
    time.sleep(2.5)
    assert backend.poll() == [] and backend.health is Health.READY
    os.kill(backend.process_id, signal.SIGCONT)
    assert ask(backend, 1).chunk is not None


def test_an_idle_worker_that_falls_silent_fails_for_good_without_a_budget(started_by_a_thread):
    backend = started_by_a_thread
    pid = backend.process_id
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: backend.poll() or backend.health is not Health.READY)
    assert backend.health is Health.FAILED and not is_alive(pid)
    assert 'fell silent' in backend.fault and 'configure the node again' in backend.fault
    assert backend.poll() == [] and backend.health is Health.FAILED
    with pytest.raises(InferenceError, match='failed'):
        backend.submit(1, observation())
    backend.stop()
    assert backend.health is Health.STOPPED


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


PARENT = textwrap.dedent('''
    import sys, time
    sys.path.insert(0, {test!r})
    from test_worker_backend import new_backend, observation
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
