# SPDX-License-Identifier: Apache-2.0
"""The policy on a thread of this process: for tests and for stepping through with a debugger.

It loads torch into the node and shares its interpreter lock, so commands jitter; robots use the
worker.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
import time

import numpy as np
from numpy.typing import NDArray

from worldvla_ros.datatypes import Frame, Observation
from worldvla_ros.errors import InferenceError
from worldvla_ros.inference.backend import BackendInfo, Health, Result
from worldvla_ros.inference.messages import WorkerSettings
from worldvla_ros.inference.worker import (
    describe_policy,
    explain,
    imagined_frame,
    load_policy,
    load_world_model,
    resident_bytes,
)


class InprocBackend:
    """One thread owns the policy; requests and hints queue up for it."""

    def __init__(self, settings: WorkerSettings, *,
                 on_result: Callable[[], None] = lambda: None) -> None:
        self._settings = settings
        self._on_result = on_result
        self._thread = ThreadPoolExecutor(1, thread_name_prefix='policy')
        self._pending: tuple[int, Future[Result]] | None = None
        self.health = Health.STOPPED
        self.fault = ''
        self.restarts = 0
        self.heartbeat_age = 0.0

    def start(self, should_abort: Callable[[], bool] = lambda: False) -> BackendInfo:
        """See `Backend.start`."""
        def load() -> BackendInfo:
            self._policy = load_policy(self._settings)
            self._world = load_world_model(self._settings, self._policy)
            self._policy.warm_up()
            if self._world is not None:
                self._world.warm_up()
            return describe_policy(self._policy, self._world)
        loading = self._thread.submit(load)
        while not loading.done() and not should_abort():
            time.sleep(0.05)
        if not loading.done():
            raise InferenceError('interrupted while loading')
        if (error := loading.exception()) is not None:
            raise InferenceError(explain(error)) from error
        self.health = Health.READY
        return loading.result()

    def submit(self, request: int, observation: Observation) -> None:
        """See `Backend.submit`."""
        self._run(request, lambda: Result(request, self._policy.predict_chunk(observation)))

    def imagine(self, request: int, action: NDArray[np.floating], frame: Frame | None) -> None:
        """See `Backend.imagine`."""
        self._run(request, lambda: Result(
            request, None, imagined=imagined_frame(self._world, action, frame)))

    def prepare(self, frames: tuple[Frame, ...], instruction: str) -> None:
        """See `Backend.prepare`."""
        if self.health is Health.READY and not self.busy:
            self._thread.submit(self._policy.prepare, frames, instruction)

    def poll(self) -> list[Result]:
        """See `Backend.poll`."""
        if self._pending is None or not self._pending[1].done():
            return []
        (request, future), self._pending = self._pending, None
        error = future.exception()
        return [future.result() if error is None else Result(request, None, explain(error))]

    def stop(self) -> None:
        """See `Backend.stop`."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._pending = None
        self.health = Health.STOPPED

    def _run(self, request: int, answer: Callable[[], Result]) -> None:
        if self.health is not Health.READY or self.busy:
            raise InferenceError('the backend was asked while it is '
                                 f'{"busy" if self.busy else self.health.value}')
        future = self._thread.submit(answer)
        self._pending = (request, future)
        future.add_done_callback(lambda _: self._on_result())

    @property
    def busy(self) -> bool:
        """See `Backend.busy`."""
        return self._pending is not None

    @property
    def memory_bytes(self) -> int:
        """See `Backend.memory_bytes`."""
        return resident_bytes()
