# SPDX-License-Identifier: Apache-2.0
"""Workers on the machines of a Ray cluster, behind the same face as WorkerPool.

Ray is imported when a pool starts and at no other time: it is not among the requirements. Every
machine needs this package, and its files (checkpoints, videos) under the same paths.
"""

from collections import deque
from collections.abc import Callable, Generator, Sequence
import contextlib
import logging
import os
import signal
import socket
import threading
from typing import Any, Generic

from worldvla_ros.errors import ConfigError
from worldvla_sim.libero_setup import changed_environment
from worldvla_sim.workers import STOP_TIMEOUT, THREAD_VARIABLES, Answerer, Job, JobFailure, Result

LOCAL = 'local'
_INHERITED = ('MUJOCO_GL', 'LIBERO_ASSETS', 'PYTHONPATH', 'AMENT_PREFIX_PATH', 'LD_LIBRARY_PATH')
_CONNECT_TIMEOUT = 5.0  # [s]; Ray itself was measured to go on for more than two minutes
_PATIENCE = 30.0  # [s] without any actor before the user is told; one starts in 2 to 10 s
_logger = logging.getLogger(__name__)


def import_ray() -> Any:
    """Return the module ray. Raises ConfigError, with the command that installs it."""
    try:
        import ray
    except ImportError as error:
        raise ConfigError(f'--ray needs Ray, which is not among the requirements ({error}): pip '
                          f'install -r requirements/optional/ray.txt, here and on every machine '
                          f'of the cluster') from error
    return ray


class RayPool(Generic[Job, Result]):
    """Actors that each build one handler and answer jobs with it.

    An actor gets its first job when it runs, so that a cluster with fewer free cores than
    `workers` plays everything with those it has.

    :param make_handler: picklable; called once in each actor
    :param workers: number of actors, one core each
    :param address: of the cluster, such as auto or 10.0.0.1:6379; `local` starts one here
    """

    def __init__(self, make_handler: Callable[[], Callable[[Job], Result]], workers: int,
                 address: str) -> None:
        self._make_handler = make_handler
        self._size = max(1, workers)
        self._address = address
        self._ray = import_ray()

    def run(self, jobs: Sequence[Job]) -> Generator[tuple[Job, Result | JobFailure], None, None]:
        """Yield each job with its result, in the order of completion.

        Closing the iterator ends all actors.

        :raises ConfigError: the cluster does not answer.
        """
        if not jobs:
            return
        ray = self._ray
        queue = deque(jobs)
        starting: dict[Any, Any] = {}  # reference that is there when the actor runs -> actor
        busy: dict[Any, tuple[Any, Job]] = {}  # reference of an answer -> actor, job
        idle: list[Any] = []

        def start() -> None:
            actor = ray.remote(num_cpus=1)(Answerer).remote(self._make_handler)
            starting[actor.__ray_ready__.remote()] = actor

        def send_next(actor: Any) -> None:
            if queue:
                job = queue.popleft()
                busy[actor.answer.remote(job)] = actor, job
            else:
                idle.append(actor)
        self._connect()
        try:
            for _ in range(min(self._size, len(jobs))):
                start()
            while queue or busy:
                for reference in self._wait([*starting, *busy], patient=bool(busy)):
                    if reference in starting:
                        send_next(starting.pop(reference))  # one that failed says so in its answer
                        continue
                    actor, job = busy.pop(reference)
                    try:
                        answer: Result | JobFailure = ray.get(reference)
                    except ray.exceptions.RayError as error:
                        reason = ' '.join(str(error).split())  # Ray writes a paragraph
                        answer = JobFailure(f'the worker died: {type(error).__name__}: {reason}')
                        ray.kill(actor)
                        if queue:
                            start()
                    else:
                        if (isinstance(answer, JobFailure) and answer.unable
                                and (starting or busy or idle)):
                            queue.append(job)  # for an actor of another machine
                            ray.kill(actor)
                            if idle:  # so the queue was empty
                                send_next(idle.pop())
                            continue
                        send_next(actor)
                    yield job, answer
            closed = [actor.close.remote() for actor in idle]
            ray.wait(closed, num_returns=len(closed), timeout=STOP_TIMEOUT)
        finally:
            ray.shutdown()  # ends the actors, which are not detached

    def _wait(self, references: list[Any], patient: bool) -> list[Any]:
        """Return the references that are there, at least one; tell of a long wait for actors."""
        ready: list[Any] = []
        if not patient:
            ready, _ = self._ray.wait(references, num_returns=1, timeout=_PATIENCE)
            if not ready:
                _logger.warning('no worker has started on the Ray cluster in %.0f s; still '
                                'waiting for a free CPU (`ray status` shows who has them)',
                                _PATIENCE)
        if not ready:
            ready, _ = self._ray.wait(references, num_returns=1)
        return ready

    def _connect(self) -> None:
        variables = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        variables |= {name: os.environ.get(name, '1') for name in THREAD_VARIABLES}
        cores = {'num_cpus': self._size} if self._address == LOCAL else {}
        statistics = os.environ.get('RAY_USAGE_STATS_ENABLED', '0')  # sent to Ray's makers else
        on_term = signal.getsignal(signal.SIGTERM)
        try:
            _knock(self._address)
            with changed_environment(RAY_USAGE_STATS_ENABLED=statistics):
                self._ray.init(self._address, **cores, runtime_env={'env_vars': variables},
                               log_to_driver=False, logging_level=logging.WARNING)
        except (self._ray.exceptions.RayError, OSError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f'Ray does not start here: {error}; its logs are in /tmp/ray/session_latest/logs'
                if self._address == LOCAL else
                f'no Ray cluster at {self._address!r}: {error}. Start one with `ray start '
                f'--head`, or use --ray {LOCAL}. One that asks for a token needs '
                f'RAY_AUTH_MODE=token in this shell, too') from error
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, on_term)  # Ray takes it and ends with status 15


def _knock(address: str) -> None:
    """Connect to the port of an address `host:port`; OSError where nobody listens."""
    host, colon, port = address.rpartition(':')
    if colon and port.isdigit():
        with contextlib.closing(socket.create_connection(
                (host.removeprefix('ray://').strip('[]'), int(port)), _CONNECT_TIMEOUT)):
            pass
