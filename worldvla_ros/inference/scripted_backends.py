# SPDX-License-Identifier: Apache-2.0
"""Backends without a model: `mock` draws a small circle, `replay` repeats recorded chunks."""

from collections.abc import Callable
from pathlib import Path
import threading
import time
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from worldvla_ros.datatypes import ACTION_DIM, ActionChunk, Frame, LatencySplit, Observation
from worldvla_ros.errors import CheckpointError, InferenceError
from worldvla_ros.inference.backend import BackendInfo, Health, Result

MOCK_HORIZON = 5
_MOCK_AMPLITUDE = 0.2  # of full controller input: 1 cm per control step


class ScriptedBackend:
    """
    Answers each request with the next chunk of a script, after a fixed latency.

    :param chunk_of: actions (horizon, 7) of the n-th request, or None when the script is over
    :param latency: time to answer [s]
    """

    def __init__(self, chunk_of: Callable[[int, Observation], np.ndarray | None],
                 info: BackendInfo, *, latency: float = 0.0,
                 on_result: Callable[[], None] = lambda: None) -> None:
        self._chunk_of = chunk_of
        self._info = info
        self._latency = latency
        self._on_result = on_result
        self._answered = 0
        self._due = 0.0  # [s] monotonic
        self._pending: tuple[int, Observation] | None = None
        self._timer: threading.Timer | None = None
        self.health = Health.STOPPED
        self.fault = ''
        self.restarts = 0
        self.heartbeat_age = 0.0
        self.memory_bytes = 0

    def start(self, should_abort: Callable[[], bool] = lambda: False) -> BackendInfo:
        """See `Backend.start`."""
        self.health = Health.READY
        return self._info

    def submit(self, request: int, observation: Observation) -> None:
        """See `Backend.submit`."""
        if self.health is not Health.READY or self.busy:
            raise InferenceError('a chunk was asked for while the backend is '
                                 f'{"busy" if self.busy else self.health.value}')
        self._pending = (request, observation)
        self._due = time.monotonic() + self._latency
        self._timer = threading.Timer(self._latency, self._on_result)
        self._timer.daemon = True
        self._timer.start()

    def imagine(self, request: int, action: NDArray[np.floating], frame: Frame | None) -> None:
        """See `Backend.imagine`; a script has no world model."""
        raise InferenceError('this backend has no world model')

    def prepare(self, frames: tuple[Frame, ...], instruction: str) -> None:
        """See `Backend.prepare`; a script needs no preparation."""

    def poll(self) -> list[Result]:
        """See `Backend.poll`."""
        if self._pending is None or time.monotonic() < self._due:
            return []
        (request, observation), self._pending = self._pending, None
        actions = self._chunk_of(self._answered, observation)
        if actions is None:
            return [Result(request, None, f'the script is over after {self._answered} chunks')]
        self._answered += 1
        nothing = np.zeros((0, ACTION_DIM))
        return [Result(request, ActionChunk(
            actions=np.asarray(actions, np.float32), token_ids=nothing.astype(np.int32),
            entropy=nothing.astype(np.float32), instruction=observation.instruction,
            frame_stamps_ns=tuple(frame.stamp_ns for frame in observation.frames),
            latency=LatencySplit(total=self._latency)))]

    def stop(self) -> None:
        """See `Backend.stop`."""
        if self._timer is not None:
            self._timer.cancel()
        self._pending = None
        self.health = Health.STOPPED

    @property
    def busy(self) -> bool:
        """See `Backend.busy`."""
        return self._pending is not None


def mock_backend(*, latency: float = 0.0, history_length: int = 2,
                 on_result: Callable[[], None] = lambda: None) -> ScriptedBackend:
    """Make a backend that opens the gripper and draws a small circle, one turn in 8 chunks."""
    def chunk_of(number: int, _: Observation) -> np.ndarray:
        angle = 2 * np.pi * (np.arange(MOCK_HORIZON) + MOCK_HORIZON * number) / (8 * MOCK_HORIZON)
        actions = np.zeros((MOCK_HORIZON, ACTION_DIM))
        actions[:, 0] = _MOCK_AMPLITUDE * np.cos(angle)
        actions[:, 1] = _MOCK_AMPLITUDE * np.sin(angle)
        actions[:, 6] = -1.0
        return actions
    info = BackendInfo('mock: a small circle, no model', MOCK_HORIZON, history_length, 256)
    return ScriptedBackend(chunk_of, info, latency=latency, on_result=on_result)


def read_chunks(path: Path) -> np.ndarray:
    """
    Read recorded chunks (N, horizon, 7) in controller input, as the demo writes beside its videos.

    Raises CheckpointError for what is no .npz file with such `actions`.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            actions = np.asarray(archive['actions'], np.float32)
    except (OSError, EOFError, ValueError, KeyError, TypeError, BadZipFile) as error:
        # TypeError: an .npy file gives an array, which is no archive
        raise CheckpointError(f'{path}: expected an .npz file with `actions` (N, horizon, '
                              f'{ACTION_DIM}), got {error}') from None
    if actions.ndim != 3 or actions.shape[2] != ACTION_DIM or actions.size == 0:
        raise CheckpointError(f'{path}: `actions` must be (N, horizon, {ACTION_DIM}), got '
                              f'{actions.shape}')
    return actions


def replay_backend(path: str | Path, *, latency: float = 0.0, history_length: int = 2,
                   on_result: Callable[[], None] = lambda: None) -> ScriptedBackend:
    """
    Make a backend that answers with recorded chunks, in order, once.

    :param path: see `read_chunks`
    """
    path = Path(path)
    actions = read_chunks(path)
    info = BackendInfo(f'replay of {len(actions)} chunks from {path.name}', actions.shape[1],
                       history_length, 256)
    return ScriptedBackend(lambda number, _: actions[number] if number < len(actions) else None,
                           info, latency=latency, on_result=on_result)
