# SPDX-License-Identifier: Apache-2.0
"""Workers on the machines of a Ray cluster, behind the same face as WorkerPool.

Ray is imported when a pool starts and at no other time: it is not among the requirements. Every
machine needs this package, and its files (checkpoints, videos) under the same paths.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
import os
from typing import Any, Generic

from worldvla_ros.errors import ConfigError
from worldvla_sim.workers import THREAD_VARIABLES, Answerer, Job, JobFailure, Result

LOCAL = 'local'
_INHERITED = ('MUJOCO_GL', 'LIBERO_ASSETS', 'PYTHONPATH', 'AMENT_PREFIX_PATH', 'LD_LIBRARY_PATH')


def import_ray() -> Any:
    """Return the module ray. Raises ConfigError, with the command that installs it."""
    try:
        import ray
    except ImportError as error:
        raise ConfigError(f'--ray needs Ray, which is not among the requirements ({error}): '
                          f'pip install "ray[default]", here and on every machine of the '
                          f'cluster') from error
    return ray


class RayPool(Generic[Job, Result]):
    """Actors that each build one handler and answer jobs with it.

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

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Result | JobFailure]]:
        """Yield each job with its result, in the order of completion.

        Closing the iterator ends all actors.

        :raises ConfigError: the cluster does not answer.
        """
        ray = self._ray
        self._connect()
        queue = deque(jobs)
        busy: dict[Any, tuple[Any, Job]] = {}  # reference of an answer -> actor, job

        def send_next(actor: Any) -> None:
            if queue:
                job = queue.popleft()
                busy[actor.answer.remote(job)] = actor, job
        try:
            for _ in range(min(self._size, len(jobs))):
                send_next(self._new_actor())
            while busy:
                ready, _ = ray.wait(list(busy), num_returns=1)
                for reference in ready:
                    actor, job = busy.pop(reference)
                    try:
                        answer: Result | JobFailure = ray.get(reference)
                    except ray.exceptions.RayError as error:
                        answer = JobFailure(f'the worker died: {type(error).__name__}: {error}')
                        ray.kill(actor)
                        actor = self._new_actor() if queue else actor
                    send_next(actor)
                    yield job, answer
        finally:
            ray.shutdown()  # ends the actors, which are not detached

    def _connect(self) -> None:
        variables = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        variables |= {name: os.environ.get(name, '1') for name in THREAD_VARIABLES}
        where = {} if self._address == LOCAL else {'address': self._address}
        try:
            self._ray.init(**where, runtime_env={'env_vars': variables}, log_to_driver=False)
        except (ConnectionError, OSError, ValueError, RuntimeError) as error:
            raise ConfigError(f'no Ray cluster at {self._address!r}: {error}. Start one with '
                              f'`ray start --head`, or use --ray local') from error

    def _new_actor(self) -> Any:
        return self._ray.remote(num_cpus=1)(Answerer).remote(self._make_handler)
