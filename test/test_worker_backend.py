# SPDX-License-Identifier: Apache-2.0
"""The inference worker, a real process: it answers, dies, hangs and comes back."""

from dataclasses import replace
import os
import signal
import subprocess
import sys
import threading

import numpy as np
from processes import is_alive
import pytest
from state_policies import attentive_policy, state_checkpoint
from worker_processes import (
    FOREVER,
    PERIOD,
    ROOT,
    SETTINGS,
    ask,
    new_backend,
    noise,
    observation,
    result_of,
    wait_for,
    wait_until_ready,
)

from worldvla_ros.datatypes import Frame, Observation
from worldvla_ros.errors import FrameError, InferenceError
from worldvla_ros.inference.backend import Health
from worldvla_ros.inference.inproc_backend import InprocBackend
from worldvla_ros.inference.messages import TERMINAL_SIGNALS
from worldvla_ros.training.run_folder import save_pretrained


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
                one.prepare(observation(seed).frames[:1], observation().instruction)
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


def assert_both_backends_need(checkpoint, observations, missing):
    """The first observation lacks what the policy reads; the others differ in it alone."""
    settings = replace(SETTINGS, checkpoint=str(checkpoint))
    worker, inproc = new_backend(settings), InprocBackend(settings)
    try:
        info = worker.start()
        assert info == inproc.start()
        answers = []
        for number, asked in enumerate(observations):
            inproc.submit(number, asked)
            answers.append((ask(worker, number, asked), result_of(inproc, number)))
    finally:
        worker.stop()
        inproc.stop()
    refused, *chunks = answers
    assert all(one.chunk is None and missing in one.error for one in refused)
    for one, other in chunks:
        np.testing.assert_array_equal(one.chunk.token_ids, other.chunk.token_ids)
    assert (chunks[0][0].chunk.token_ids != chunks[1][0].chunk.token_ids).any()
    return info


def test_the_wrist_camera_reaches_a_policy_that_reads_it(tmp_path):
    save_pretrained(attentive_policy(reads_state=False, reads_wrist=True), tmp_path / 'tiny')
    pictures = (None, noise(7)[:64, :64], noise(8)[:64, :64])
    info = assert_both_backends_need(
        tmp_path / 'tiny', [Observation((Frame(noise(1)[:64, :64], PERIOD, wrist),), 'go')
                            for wrist in pictures], 'wrist camera')
    assert info.reads_wrist


def test_the_state_of_the_arm_reaches_a_policy_that_reads_it(backend, tmp_path):
    frames = tuple(Frame(noise(seed)[:64, :64], seed * PERIOD) for seed in (1, 2))
    assert not backend._info.reads_state
    info = assert_both_backends_need(
        state_checkpoint(tmp_path / 'tiny'), [Observation(frames, 'go', state) for state in
                                              (None, np.zeros(7), np.full(7, 0.5))],
        'state of the arm')
    assert info.reads_state


def test_the_worker_imagines_what_this_process_imagines(backend, tmp_path):
    settings = replace(SETTINGS, checkpoint=str(state_checkpoint(tmp_path / 'tiny')),
                       world_model=True, control_period=0.1)
    worker, inproc = new_backend(settings), InprocBackend(settings)
    start = Frame(noise(1)[:64, :64], PERIOD)
    rollouts = []
    try:
        assert worker.start() == inproc.start() and worker._info.imagines
        assert not backend._info.imagines, 'nobody asked for it'
        for one in (worker, inproc):
            one.imagine(1, np.full(7, 0.1), None)
            assert 'no frame yet' in result_of(one, 1).error, 'nor does it start at the warm-up'
            imagined = []
            for number, (action, frame) in enumerate(((0.2, start), (0.3, None), (0.2, start)), 2):
                one.imagine(number, np.full(7, action), frame)
                with pytest.raises(InferenceError, match='busy'):
                    one.imagine(number, np.full(7, action), frame)
                imagined.append(result_of(one, number).imagined)
            rollouts.append(imagined)
    finally:
        worker.stop()
        inproc.stop()
    for ours, theirs in zip(*rollouts, strict=True):
        np.testing.assert_array_equal(ours.frame.image, theirs.frame.image)
        np.testing.assert_array_equal(ours.entropy, theirs.entropy)
    first, second, again = rollouts[0]
    assert [one.frame.stamp_ns - PERIOD for one in rollouts[0]] == [10**8, 2 * 10**8, 10**8]
    assert (first.codes != second.codes).any()
    np.testing.assert_array_equal(first.codes, again.codes)


def test_a_worker_without_a_world_model_says_so(backend):
    backend.imagine(1, np.zeros(7), Frame(noise(1), PERIOD))
    assert 'world model is not loaded' in result_of(backend, 1).error


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
    for number, hinted in ((3, observation(7).frames[:1]), (4, observation(99).frames[:1])):
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
    backend.prepare((large,), 'go')
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


@pytest.mark.parametrize('number', TERMINAL_SIGNALS)
def test_it_ignores_a_signal_from_the_terminal(backend, number):
    pid = backend.process_id
    os.kill(pid, number)
    assert ask(backend, 1).chunk is not None
    assert backend.process_id == pid


def test_the_node_s_side_never_loads_torch():
    program = ('import sys, worldvla_ros.inference.worker_backend, worldvla_ros.control.controller'
               '\nassert "torch" not in sys.modules')
    subprocess.run([sys.executable, '-c', program], check=True, cwd=ROOT,
                   env={**os.environ, 'PYTHONPATH': str(ROOT)})


# --- death and hanging ------------------------------------------------------------------------


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


@pytest.mark.parametrize('parameter, asked', [
    ('answer_timeout', lambda backend: backend.submit(1, observation())),
    ('imagine_timeout', lambda backend: backend.imagine(1, np.zeros(7), None))])
def test_a_hung_worker_is_killed_and_replaced(backend, parameter, asked):
    pid = backend.process_id
    os.kill(pid, signal.SIGSTOP)
    setattr(backend, f'_{parameter}', 0.3)
    try:
        asked(backend)
    finally:
        setattr(backend, f'_{parameter}', FOREVER)
    result = result_of(backend, 1)
    assert result.chunk is None and 'did not answer within 0.3 s' in result.error
    assert f'worker.{parameter}' in result.error
    assert backend.health is Health.LOADING
    wait_for(lambda: not is_alive(pid))
    wait_until_ready(backend)
    assert ask(backend, 2).chunk is not None
