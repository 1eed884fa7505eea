# SPDX-License-Identifier: Apache-2.0
"""The inference worker: the process that loads torch, so that the node need not.

It is started by the node with two inherited descriptors, a pipe and a block of shared memory. It
answers one request at a time on one thread and sends a heartbeat while it is idle; while it is
busy the node waits for the answer up to a deadline. It exits when told and when the pipe closes,
which it does when the node dies.
"""

from collections.abc import Iterator
import contextlib
import logging
from multiprocessing.connection import Connection
import os
from pathlib import Path
import pickle
import select
import signal
import sys
import threading
import traceback
from typing import TYPE_CHECKING

import numpy as np

from worldvla_ros.datatypes import Frame, ImaginedFrame, Observation
from worldvla_ros.errors import InferenceError, WorldVLAError
from worldvla_ros.inference.backend import BackendInfo
from worldvla_ros.inference.messages import (
    TERMINAL_SIGNALS,
    Answer,
    Failed,
    Heartbeat,
    Imagine,
    Loaded,
    Prepare,
    Prepared,
    Progress,
    Ready,
    Request,
    Stop,
    WorkerSettings,
)
from worldvla_ros.inference.shared_frames import SharedFrames

if TYPE_CHECKING:
    from worldvla_ros.policy.policy import WorldVLAPolicy
    from worldvla_ros.policy.world_model import WorldModel

HEARTBEAT_PERIOD = 0.1  # [s]
_PICKLE_PROTOCOL = 4  # with 5, Python 3.14's, NumPy 2 names modules that the node's 1.26 lacks


class NodeConnection(Connection):
    """The worker's end of the pipe; the node's Python and NumPy may be older."""

    def send(self, obj: object) -> None:
        """Send a message that the node can read."""
        self.send_bytes(pickle.dumps(obj, _PICKLE_PROTOCOL))


def _exit_with_the_pipe(descriptor: int) -> None:
    """
    End the process as soon as the pipe closes, in the middle of a chunk, too.

    Not PR_SET_PDEATHSIG: that goes off when the thread that started the worker ends.
    """
    poller = select.poll()
    poller.register(descriptor, 0)  # a hang-up is reported without being asked for

    def wait() -> None:
        poller.poll()
        os._exit(0)
    threading.Thread(target=wait, daemon=True, name='pipe watch').start()


def default_threads() -> int:
    """Return all cores that this process may use but one, which is left for the node."""
    # Not os.cpu_count: a container or taskset may have pinned it to a few of the machine's cores.
    return max(1, len(os.sched_getaffinity(0)) - 1)


def load_policy(settings: WorkerSettings) -> 'WorldVLAPolicy':
    """Load the policy as the settings say; imports torch. Raises what `from_pretrained` does."""
    import torch

    from worldvla_ros.policy.named_checkpoints import locate_checkpoint
    from worldvla_ros.policy.policy import WorldVLAPolicy
    torch.set_num_threads(settings.threads or default_threads())
    return WorldVLAPolicy.from_pretrained(
        locate_checkpoint(settings.checkpoint), subfolder=settings.subfolder or None,
        device=settings.device, dtype=settings.dtype, weights=settings.weights,
        drafts=settings.drafts, num_actions=settings.num_actions or None,
        settings=settings.settings or None)


def load_world_model(settings: WorkerSettings, policy: 'WorldVLAPolicy') -> 'WorldModel | None':
    """Return the world model on the weights of a policy, None where it is not wanted.

    Imagined codes are its next input, as `world_metrics` measures it by default: through pixels
    and back they would be others, and the frame before no good draft.
    """
    if not settings.world_model:
        return None
    from worldvla_ros.policy.world_model import WorldModel
    return WorldModel(policy.pretrained, control_period_s=settings.control_period,
                      reencode=False)


def imagined_frame(world: 'WorldModel | None', action: np.ndarray,
                   frame: Frame | None) -> ImaginedFrame:
    """Return the frame after an action, see `Backend.imagine`. Raises what WorldModel does."""
    if world is None:
        raise InferenceError('the world model is not loaded')
    if frame is not None:
        world.reset(frame)
    return world.step(action)


def describe_policy(policy: 'WorldVLAPolicy', world: 'WorldModel | None') -> BackendInfo:
    """Say what a loaded policy is and needs."""
    return BackendInfo(policy.description, policy.horizon, policy.history_length,
                       policy.image_size, policy.reads_state, policy.reads_wrist,
                       imagines=world is not None)


class _ProgressSender(logging.Handler):
    """Tells the node what is logged; without another thread, so that a hung one is silent."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection

    def emit(self, record: logging.LogRecord) -> None:
        self._connection.send(Progress(record.getMessage()))


@contextlib.contextmanager
def progress_sent(connection: Connection) -> Iterator[None]:
    """Send what the package logs meanwhile as steps of the warm-up."""
    logger, sender = logging.getLogger('worldvla_ros'), _ProgressSender(connection)
    level = logger.level
    logger.addHandler(sender)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(sender)


def explain(error: BaseException) -> str:
    """Return the message of our own errors as it is, and name the type of any other."""
    if isinstance(error, ModuleNotFoundError):
        return (f'{error} for {sys.executable}; set worker.python to the interpreter of a virtual '
                'environment that has it, as `make setup` makes one')
    return str(error) if isinstance(error, WorldVLAError) else f'{type(error).__name__}: {error}'


def serve(connection: Connection, frames: SharedFrames, policy: 'WorldVLAPolicy',
          world: 'WorldModel | None') -> None:
    """Answer requests until told to stop."""
    while True:
        if not connection.poll(HEARTBEAT_PERIOD):
            connection.send(Heartbeat(resident_bytes()))
            continue
        message = connection.recv()
        if isinstance(message, Stop):
            return
        connection.send(_prepare(message, frames, policy) if isinstance(message, Prepare)
                        else _answer(message, frames, policy, world))


def _answer(request: Request | Imagine, frames: SharedFrames, policy: 'WorldVLAPolicy',
            world: 'WorldModel | None') -> Answer:
    """Run one request. A failure becomes an answer and the worker lives on, if it can."""
    try:
        shown = frames.read(request.slots)
        if isinstance(request, Imagine):
            return Answer(request.number, None, imagined=imagined_frame(
                world, request.action, shown[0] if shown else None))
        return Answer(request.number, policy.predict_chunk(
            Observation(shown, request.instruction, request.state)))
    except Exception as error:
        if _device_is_lost(error):
            raise
        return Answer(request.number, None, explain(error), detail=traceback.format_exc())


def _prepare(hint: Prepare, frames: SharedFrames, policy: 'WorldVLAPolicy') -> Prepared:
    """Follow a hint. A failure is no matter if the worker lives on: the request will say it."""
    try:
        policy.prepare(frames.read(hint.slots), hint.instruction)
        return Prepared()
    except Exception as error:
        if _device_is_lost(error):
            raise
        return Prepared(traceback.format_exc())


def _device_is_lost(error: Exception) -> bool:
    """
    Return whether nothing runs on the device any more after an error.

    After a failed assertion or a bad address in a kernel every later call of the process to CUDA
    fails, with an AcceleratorError. Want of memory has another one, torch.OutOfMemoryError.
    """
    import torch
    return isinstance(error, torch.AcceleratorError)


def resident_bytes() -> int:
    """Resident memory of this process."""
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    return pages * os.sysconf('SC_PAGE_SIZE')


def main() -> int:
    """Run with the descriptors of pipe and shared memory as arguments."""
    for number in TERMINAL_SIGNALS:  # the node decides when the worker stops
        signal.signal(number, signal.SIG_IGN)
    _exit_with_the_pipe(int(sys.argv[1]))
    os.nice(5)  # the publisher of commands goes first
    connection = NodeConnection(int(sys.argv[1]))
    try:
        settings: WorkerSettings = connection.recv()
        try:
            frames = SharedFrames(settings.frame_memory, int(sys.argv[2]))
            policy = load_policy(settings)
            world = load_world_model(settings, policy)
            connection.send(Loaded(describe_policy(policy, world)))
            with progress_sent(connection):
                policy.warm_up()
                if world is not None:
                    world.warm_up()
            connection.send(Ready())
            serve(connection, frames, policy, world)
        except Exception as error:
            connection.send(Failed(explain(error), traceback.format_exc()))
            return 1
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return 0  # the node is gone
    return 0


if __name__ == '__main__':
    sys.exit(main())
