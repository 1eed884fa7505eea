# SPDX-License-Identifier: Apache-2.0
"""The policy on a thread of this process: for tests and for stepping through with a debugger.

It loads torch into the node and shares its interpreter lock, so commands jitter; robots use the
worker.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
import time

from worldvla_ros.datatypes import ActionChunk, Frame, Observation
from worldvla_ros.errors import InferenceError
from worldvla_ros.inference.backend import BackendInfo, Health, Result
from worldvla_ros.inference.messages import WorkerSettings
from worldvla_ros.inference.worker import (
    describe_policy,
    explain,
    load_policy,
    resident_bytes,
)


class InprocBackend:
    """One thread owns the policy; requests and hints queue up for it."""

    def __init__(self, settings: WorkerSettings, *,
                 on_result: Callable[[], None] = lambda: None) -> None:
        self._settings = settings
        self._on_result = on_result
        self._thread = ThreadPoolExecutor(1, thread_name_prefix='policy')
        self._pending: tuple[int, Future[ActionChunk]] | None = None
        self.health = Health.STOPPED
        self.fault = ''
        self.restarts = 0
        self.heartbeat_age = 0.0

    def start(self, should_abort: Callable[[], bool] = lambda: False) -> BackendInfo:
        """See `Backend.start`."""
        def load() -> BackendInfo:
            self._policy = load_policy(self._settings)
            self._policy.warm_up()
            return describe_policy(self._policy)
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
        if self.health is not Health.READY or self.busy:
            raise InferenceError('a chunk was asked for while the backend is '
                                 f'{"busy" if self.busy else self.health.value}')
        future = self._thread.submit(self._policy.predict_chunk, observation)
        self._pending = (request, future)
        future.add_done_callback(lambda _: self._on_result())

    def prepare(self, frame: Frame, instruction: str) -> None:
        """See `Backend.prepare`."""
        if self.health is Health.READY and not self.busy:
            self._thread.submit(self._policy.prepare, frame, instruction)

    def poll(self) -> list[Result]:
        """See `Backend.poll`."""
        if self._pending is None or not self._pending[1].done():
            return []
        (request, future), self._pending = self._pending, None
        error = future.exception()
        if error is not None:
            return [Result(request, None, explain(error))]
        return [Result(request, future.result())]

    def stop(self) -> None:
        """See `Backend.stop`."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._pending = None
        self.health = Health.STOPPED

    @property
    def busy(self) -> bool:
        """See `Backend.busy`."""
        return self._pending is not None

    @property
    def memory_bytes(self) -> int:
        """See `Backend.memory_bytes`."""
        return resident_bytes()
