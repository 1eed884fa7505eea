# SPDX-License-Identifier: Apache-2.0
"""What the node and its worker say to each other over their pipe (both ends are ours)."""

from dataclasses import dataclass
import signal

import numpy as np

from worldvla_ros.datatypes import ActionChunk, ImaginedFrame
from worldvla_ros.inference.backend import BackendInfo
from worldvla_ros.inference.shared_frames import FrameSlot

TERMINAL_SIGNALS = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
"""Ctrl-C, Ctrl-\\ and a closed terminal reach all its processes, node and worker alike."""


@dataclass(frozen=True)
class WorkerSettings:
    """How the worker loads its policy; the first message it gets."""

    checkpoint: str  # folder, Hub id, or one of policy.named_checkpoints
    subfolder: str  # '' for none
    settings: str  # policy.json in place of the checkpoint's, or a name of RELEASED; '' for none
    device: str
    dtype: str
    weights: str  # dense, fp8
    num_actions: int  # 0: the checkpoint's own horizon
    threads: int  # torch threads; 0: all cores but one
    frame_memory: int  # [byte]
    drafts: bool = False  # guess each chunk from the last one
    world_model: bool = False  # load and warm up the world model, too
    control_period: float = 0.05  # [s] between imagined frames


@dataclass(frozen=True)
class Loaded:
    """The worker has loaded and begins to warm up, which takes minutes on a new GPU."""

    info: BackendInfo


@dataclass(frozen=True)
class Progress:
    """The worker has done a step of its warm-up."""

    step: str  # for the debug log


@dataclass(frozen=True)
class Ready:
    """The worker has warmed up."""


@dataclass(frozen=True)
class Failed:
    """The worker cannot serve, or not any more; it exits after this."""

    error: str
    detail: str  # traceback, for the debug log


@dataclass(frozen=True)
class Heartbeat:
    """The worker is idle and alive."""

    memory_bytes: int


@dataclass(frozen=True, eq=False)
class Request:
    """One chunk, please; the frames lie in shared memory until it is answered."""

    number: int
    slots: tuple[FrameSlot, ...]
    instruction: str
    state: np.ndarray | None = None  # (7,) of the arm, for policies that read it


@dataclass(frozen=True, eq=False)
class Imagine:
    """One imagined frame, please, after this action."""

    number: int
    action: np.ndarray  # (7,) controller input
    slots: tuple[FrameSlot, ...]  # the frame to start from; empty: go on from the last imagined


@dataclass(frozen=True, eq=False)
class Answer:
    """A chunk or an imagined frame, or why there is none."""

    number: int
    chunk: ActionChunk | None
    error: str = ''
    imagined: ImaginedFrame | None = None
    detail: str = ''  # traceback, for the debug log


@dataclass(frozen=True)
class Prepare:
    """A hint: these frames will be those before the newest; they lie there until Prepared."""

    slots: tuple[FrameSlot, ...]
    instruction: str


@dataclass(frozen=True)
class Prepared:
    """The worker has followed the hint, or could not."""

    detail: str = ''  # traceback, for the debug log


@dataclass(frozen=True)
class Stop:
    """The worker exits."""
