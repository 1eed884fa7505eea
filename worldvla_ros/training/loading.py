# SPDX-License-Identifier: Apache-2.0
"""Batches that are made ahead, so that a fast device does not wait for them."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
import signal
from typing import TypeVar

from torch.utils.data import DataLoader, Dataset

from worldvla_ros.errors import WorldVLAError

Made = TypeVar('Made')
AHEAD = 4  # batches that each process may be ahead by


class _Steps(Dataset['Made | WorldVLAError']):
    """What is made for a step, as an item by its number.

    An error of ours is handed over: one that is raised arrives with the traceback as its message.
    """

    def __init__(self, make: Callable[[int], Made]) -> None:
        self._make = make

    def __getitem__(self, step: int) -> Made | WorldVLAError:
        try:
            return self._make(step)
        except WorldVLAError as error:
            return error


@contextmanager
def made_ahead(make: Callable[[int], Made], steps: range, processes: int = 0
               ) -> Iterator[Iterator[Made]]:
    """Give what `make` returns for these steps, in order, made by processes or by one thread.

    :param processes: for work in Python, which holds its lock; 0: a thread of this one. They are
        forked, so `make` must not use a GPU.
    """
    source = _from_processes(make, steps, processes) if processes else make
    with made_by_threads(source, steps, 1) as upcoming:
        yield upcoming


def _from_processes(make: Callable[[int], Made], steps: range, processes: int
                    ) -> Callable[[int], Made]:
    """Return what takes the next one from its process; that takes milliseconds, too."""
    made = iter(DataLoader(_Steps(make), sampler=steps, batch_size=None, num_workers=processes,
                           prefetch_factor=AHEAD, multiprocessing_context='fork',
                           worker_init_fn=_leave_stopping_to_the_trainer))

    def take(_: int) -> Made:
        result = next(made)
        if isinstance(result, WorldVLAError):
            try:
                raise result
            finally:
                del result  # it would keep this frame, and so the processes, for ever
        return result
    return take


def _leave_stopping_to_the_trainer(_: int) -> None:
    """Ignore what ends a training: it is sent to all processes, and the last step needs these."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def made_by_threads(make: Callable[[int], Made], steps: range, threads: int
                    ) -> Iterator[Iterator[Made]]:
    """Give what `make` returns for these steps, in order: for work outside of Python's lock."""
    with ThreadPoolExecutor(threads) as pool:
        def results() -> Iterator[Made]:
            waiting = deque(pool.submit(make, step) for step in steps[:threads])
            for step in steps[threads:]:
                result = waiting.popleft().result()
                waiting.append(pool.submit(make, step))
                yield result
            while waiting:
                yield waiting.popleft().result()
        yield results()
