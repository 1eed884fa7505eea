# SPDX-License-Identifier: Apache-2.0
"""What the node asks of whatever produces chunks: a worker process, this process, or a script.

A backend takes one request at a time and never blocks its caller, but for `start`, which loads
and warms up, and `stop`, for some seconds. Results are collected with `poll`; `on_result` is
called from a thread of the backend when there is one to collect, so that the caller need not look
for it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from worldvla_ros.datatypes import ActionChunk, Frame, ImaginedFrame, Observation

BACKENDS = ('worker', 'inproc', 'replay', 'mock')


class Health(Enum):
    """State of a backend."""

    STOPPED = 'stopped'
    LOADING = 'loading'  # started or restarted, not yet able to answer
    READY = 'ready'
    DOWN = 'down'  # died or hung; a restart is due
    FAILED = 'failed'  # down for good: the restart budget is spent


@dataclass(frozen=True)
class BackendInfo:
    """What a started backend says of itself."""

    description: str  # for people: checkpoint, size, number format, trained or random
    horizon: int  # actions per chunk
    history_length: int  # frames in a full observation
    image_size: int  # [px] side of the square the model sees
    reads_state: bool = False  # observations must have the state of the arm
    reads_wrist: bool = False  # frames must have the picture of the wrist camera
    imagines: bool = False  # its world model is loaded, too


@dataclass(frozen=True, eq=False)
class Result:
    """The answer to one request: a chunk or an imagined frame, or the reason why there is none."""

    request: int
    chunk: ActionChunk | None
    error: str = ''
    imagined: ImaginedFrame | None = None


class Backend(Protocol):
    """See the module; raises InferenceError where a call is out of order."""

    def start(self, should_abort: Callable[[], bool] = lambda: False) -> BackendInfo:
        """Load and warm up; return when ready, or LOADING where a warm-up takes very long.

        Raises InferenceError with the reason.
        """

    def submit(self, request: int, observation: Observation) -> None:
        """Ask for one chunk; only when READY and not busy."""

    def imagine(self, request: int, action: NDArray[np.floating], frame: Frame | None) -> None:
        """Ask for the frame after an action (7,); when `info.imagines`, else as `submit`.

        :param frame: to start from; None: the frame that was imagined last.
        """

    def prepare(self, frames: tuple[Frame, ...], instruction: str) -> None:
        """Tell it ahead which frames will come before the newest; a hint, never an error.

        :param frames: oldest first, one at least.
        """

    def poll(self) -> list[Result]:
        """Collect what has been answered, and do what is due (deadlines, restarts)."""

    def stop(self) -> None:
        """Free everything; safe to repeat.

        Afterwards no process or thread of it is left, or the log says which the kernel holds.
        """

    @property
    def busy(self) -> bool:
        """Whether a request is not answered yet."""

    @property
    def health(self) -> Health:
        """State as of the last poll."""

    @property
    def fault(self) -> str:
        """Why it is DOWN or FAILED, or why it restarts; empty when all is well."""

    @property
    def restarts(self) -> int:
        """Restarts since start."""

    @property
    def heartbeat_age(self) -> float:
        """Time since the last sign of life [s]."""

    @property
    def memory_bytes(self) -> int:
        """Resident memory of the process that holds the model; 0 where it is not known."""
