# SPDX-License-Identifier: Apache-2.0
"""Backends without a model answer once per request, in order, in their time."""

import threading
import time

import numpy as np
import pytest

from worldvla_ros.datatypes import ACTION_DIM, Frame, Observation
from worldvla_ros.errors import CheckpointError, InferenceError
from worldvla_ros.inference.backend import Health
from worldvla_ros.inference.scripted_backends import (
    MOCK_HORIZON,
    mock_backend,
    replay_backend,
)

FRAMES = (Frame(np.full((4, 4, 3), 1, np.uint8), 50), Frame(np.full((4, 4, 3), 2, np.uint8), 100))
OBSERVATION = Observation(FRAMES, 'go')


def chunk_of(backend, request=1):
    """Ask for one chunk and wait for it."""
    backend.submit(request, OBSERVATION)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for result in backend.poll():
            assert result.request == request
            return result
    raise AssertionError('no answer')


@pytest.fixture
def recording(tmp_path):
    path = tmp_path / 'chunks.npz'
    np.savez(path, actions=np.arange(3 * 4 * ACTION_DIM, dtype=np.float32).reshape(3, 4, -1))
    return path


def test_the_mock_says_where_its_chunk_comes_from():
    backend = mock_backend()
    info = backend.start()
    assert (info.horizon, info.history_length) == (MOCK_HORIZON, 2)
    chunk = chunk_of(backend).chunk
    assert chunk.actions.shape == (MOCK_HORIZON, ACTION_DIM)
    assert chunk.instruction == 'go' and chunk.frame_stamps_ns == (50, 100)
    assert chunk.token_ids.shape == chunk.entropy.shape == (0, ACTION_DIM)


def test_the_mock_draws_a_closed_circle_inside_the_limits_and_then_the_same_again():
    backend = mock_backend()
    backend.start()
    turns = [np.concatenate([chunk_of(backend).chunk.actions for _ in range(8)])
             for _ in range(2)]
    np.testing.assert_allclose(turns[0], turns[1], atol=1e-6)
    np.testing.assert_allclose(turns[0][:, :6].sum(axis=0), 0, atol=1e-5)
    assert np.abs(turns[0]).max() <= 1 and turns[0][:, :2].any()


def test_a_replay_gives_the_recorded_chunks_once_in_order_and_then_the_reason(recording):
    backend = replay_backend(recording)
    assert backend.start().horizon == 4
    with np.load(recording) as archive:
        for expected in archive['actions']:
            np.testing.assert_array_equal(chunk_of(backend).chunk.actions, expected)
    result = chunk_of(backend)
    assert result.chunk is None and 'over after 3 chunks' in result.error


def write_text(path):
    path.write_text('not an archive')


def write_nothing(path):
    path.write_bytes(b'')


def write_npy(path):
    with path.open('wb') as file:
        np.save(file, np.zeros((1, 2, ACTION_DIM)))


def write_truncated(path):
    np.savez(path, actions=np.zeros((9, 9, ACTION_DIM)))
    path.write_bytes(path.read_bytes()[:200])


def write_objects(path):
    np.savez(path, actions=np.array([{}]))


def write_words(path):
    np.savez(path, actions=np.full((1, 2, ACTION_DIM), 'left'))


def write_other_name(path):
    np.savez(path, chunks=np.zeros((1, 2, ACTION_DIM)))


def write_other_shape(path):
    np.savez(path, actions=np.zeros((2, ACTION_DIM)))


def write_no_chunk(path):
    np.savez(path, actions=np.zeros((0, 4, ACTION_DIM)))


@pytest.mark.parametrize('write', [
    write_text, write_nothing, write_npy, write_truncated, write_objects, write_words,
    write_other_name, write_other_shape, write_no_chunk])
def test_a_file_that_is_no_recording_is_refused_by_name(tmp_path, write):
    path = tmp_path / 'chunks.npz'
    write(path)
    with pytest.raises(CheckpointError, match=r'chunks\.npz.*actions'):
        replay_backend(path)


def test_a_recording_that_does_not_exist_is_refused_by_name(tmp_path):
    with pytest.raises(CheckpointError, match=r'nothing\.npz'):
        replay_backend(tmp_path / 'nothing.npz')


def test_one_request_at_a_time_and_only_when_started():
    backend = mock_backend(latency=60)
    with pytest.raises(InferenceError, match='stopped'):
        backend.submit(1, OBSERVATION)
    backend.start()
    backend.submit(1, OBSERVATION)
    assert backend.busy and backend.poll() == []
    with pytest.raises(InferenceError, match='busy'):
        backend.submit(2, OBSERVATION)
    backend.stop()


def test_it_tells_when_there_is_something_to_collect():
    told = threading.Event()
    backend = mock_backend(latency=0.02, on_result=told.set)
    backend.start()
    backend.submit(7, OBSERVATION)
    assert told.wait(10)
    assert [one.request for one in backend.poll()] == [7]
    assert backend.poll() == [] and not backend.busy


def test_after_stop_nothing_comes_and_no_thread_is_left():
    told = threading.Event()
    backend = mock_backend(latency=60, on_result=told.set)
    backend.start()
    before = set(threading.enumerate())
    backend.submit(1, OBSERVATION)
    timers = set(threading.enumerate()) - before
    backend.stop()
    backend.stop()
    for timer in timers:
        timer.join(10)
        assert not timer.is_alive()
    assert backend.poll() == [] and not told.is_set()
    assert backend.health is Health.STOPPED and not backend.busy
