# SPDX-License-Identifier: Apache-2.0
"""A pool of spawned processes that outlives the crash of a worker and names the job it died in.

`concurrent.futures` gives up the whole pool when one worker dies, and a simulator with a graphics
driver can die. Here the job is reported as failed, the worker is replaced, and the rest goes on.
"""

from collections import deque
from collections.abc import Callable, Generator, Sequence
import contextlib
from dataclasses import dataclass, field
import multiprocessing
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
import os
import signal
import sys
import tempfile
import traceback
from typing import Generic, TypeVar

from worldvla_ros.errors import WorldVLAError
from worldvla_sim.libero_setup import changed_environment

Job = TypeVar('Job')
Result = TypeVar('Result')

# One thread per worker: two workers with two threads each on two cores were measured to run more
# than 15 times slower. LP_NUM_THREADS is the software rasteriser of Mesa.
THREAD_VARIABLES = ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS',
                     'NUMBA_NUM_THREADS', 'LP_NUM_THREADS')
STOP_TIMEOUT = 15.0  # [s] for a worker to close what it holds


def threads_per_worker(workers: int) -> int:
    """Return the threads of torch in each worker: one, but for OMP_NUM_THREADS of a single one."""
    wanted = os.environ.get('OMP_NUM_THREADS', '')
    return int(wanted) if workers == 1 and wanted.isdigit() and int(wanted) > 0 else 1


@dataclass(frozen=True)
class JobFailure:
    """Why a job has no result.

    :param unable: the worker could not even make its handler; another one may be able to.
    """

    reason: str
    unable: bool = False


@dataclass
class _Worker(Generic[Job]):
    process: BaseProcess
    connection: Connection
    folder: tempfile.TemporaryDirectory[str]
    job: Job | None = field(default=None)

    def stop(self) -> None:
        """Ask it to end, then end it, and remove its temp folder."""
        self.connection.close()
        self.process.join(STOP_TIMEOUT if self.job is None else 0)
        if self.process.is_alive():
            self.process.terminate()
            self.process.join(STOP_TIMEOUT)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.folder.cleanup()


def _serve(connection: Connection, make_handler: Callable[[], Callable[[Job], Result]],
           folder: str) -> None:
    """Answer jobs until the connection closes: the worker's main function."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    os.environ['TMPDIR'] = tempfile.tempdir = folder
    answerer = Answerer(make_handler)
    try:
        while True:
            job = connection.recv()
            connection.send(answerer.answer(job))
    except (EOFError, OSError):
        return  # the parent is gone
    finally:
        with contextlib.suppress(Exception):  # a signal may have left the handler half-built
            answerer.close()


class Answerer(Generic[Job, Result]):
    """Answers jobs with a handler that it makes first; what the handler raises is an answer too.

    :param make_handler: what it returns may have a method `close`.
    """

    def __init__(self, make_handler: Callable[[], Callable[[Job], Result]]) -> None:
        self._make_handler = make_handler
        self._handler: Callable[[Job], Result] | None = None

    def answer(self, job: Job) -> Result | JobFailure:
        """Handle one job."""
        unable = self._handler is None
        try:
            self._handler = self._handler or self._make_handler()
            unable = False
            return self._handler(job)
        except Exception as error:
            traceback.print_exc()
            if not isinstance(error, WorldVLAError):  # whatever it was, the next job starts anew
                with contextlib.suppress(Exception):
                    self.close()
            return JobFailure(f'{type(error).__name__}: {error}', unable)

    def close(self) -> None:
        """Close the handler, if it can be; safe to repeat."""
        handler, self._handler = self._handler, None
        if handler is not None and hasattr(handler, 'close'):
            handler.close()


class WorkerPool(Generic[Job, Result]):
    """Spawned workers that each build one handler and answer jobs with it.

    :param make_handler: picklable; called once in each worker, so that the handler can keep what
        is expensive (an environment) from job to job.
    :param workers: number of processes.
    """

    def __init__(self, make_handler: Callable[[], Callable[[Job], Result]], workers: int) -> None:
        self._make_handler = make_handler
        self._size = max(1, workers)
        self._workers: list[_Worker[Job]] = []

    def _start_worker(self) -> _Worker[Job]:
        context = multiprocessing.get_context('spawn')
        ours, theirs = context.Pipe()
        folder = tempfile.TemporaryDirectory(prefix='worldvla_worker_')
        with changed_environment(**{name: os.environ.get(name, '1')
                                    for name in THREAD_VARIABLES}):
            process = context.Process(target=_serve, daemon=True,
                                      args=(theirs, self._make_handler, folder.name))
            process.start()
        theirs.close()
        return _Worker(process, ours, folder)

    def run(self, jobs: Sequence[Job]) -> Generator[tuple[Job, Result | JobFailure], None, None]:
        """Yield each job with its result, in the order of completion.

        A worker that cannot make its handler leaves its job to the others, as long as there are
        any. Closing the iterator (or an exception in the consumer, Ctrl-C included) ends all.
        """
        queue = deque(jobs)
        self._workers = [self._start_worker() for _ in range(min(self._size, len(jobs)))]
        try:
            for worker in self._workers:
                self._send_next(worker, queue)
            while busy := [(w, w.job) for w in self._workers if w.job is not None]:
                ready = wait([worker.connection for worker, _ in busy])
                for worker, job in busy:
                    if worker.connection not in ready:
                        continue
                    answer = self._receive(worker)
                    worker.job = None
                    left_to_others = (isinstance(answer, JobFailure) and answer.unable
                                      and len(self._workers) > 1)
                    if left_to_others:
                        queue.append(job)
                        self._retire(worker)
                    elif not worker.process.is_alive():
                        self._retire(worker)
                        if queue:
                            self._workers.append(self._start_worker())
                    for idle in self._workers:
                        if idle.job is None:
                            self._send_next(idle, queue)
                    if not left_to_others:
                        yield job, answer
        finally:
            for worker in self._workers:
                worker.connection.close()  # all first, so that they end side by side
            for worker in self._workers:
                worker.stop()

    def _send_next(self, worker: _Worker[Job], queue: deque[Job]) -> None:
        if queue:
            worker.job = queue.popleft()
            worker.connection.send(worker.job)

    def _receive(self, worker: _Worker[Job]) -> Result | JobFailure:
        try:
            answer: Result | JobFailure = worker.connection.recv()
        except (EOFError, OSError):
            worker.process.join(STOP_TIMEOUT)
            return JobFailure(f'the worker process died with exit code {worker.process.exitcode} '
                              f'(negative: signal; -9 is often the out-of-memory killer)')
        return answer

    def _retire(self, worker: _Worker[Job]) -> None:
        self._workers.remove(worker)
        worker.stop()
