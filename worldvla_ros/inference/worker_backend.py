# SPDX-License-Identifier: Apache-2.0
"""The node's side of the inference worker: starts it, feeds it, watches it, restarts it."""

from collections.abc import Callable
import contextlib
import logging
from multiprocessing import Pipe
from multiprocessing.connection import Connection
import os
from pathlib import Path
import signal
import subprocess
import sys
import threading
import time
import traceback

import numpy as np
from numpy.typing import NDArray

from worldvla_ros.datatypes import Frame, Observation
from worldvla_ros.errors import FrameError, InferenceError
from worldvla_ros.inference.backend import BackendInfo, Health, Result
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
from worldvla_ros.safety.watchdog import RestartBudget, Watchdog

_POLL_PERIOD = 0.05  # [s] while start waits
_STOP_TIMEOUT = 2.0  # [s] a worker gets to leave by itself, and again to be gone once killed
_RETRY_DELAY = 1.0  # [s] after a process could not be started; twice as long after the next
_EXIT_TIME = 0.5  # [s] longest wait for the exit status, once the pipe has ended
_SECOND_NS = 1_000_000_000
_logger = logging.getLogger(__name__)


class WorkerBackend:
    """
    A policy in a process of its own.

    A worker that dies, falls silent while idle, or does not answer in time is killed and, within
    the budget, replaced; the model loads anew meanwhile and the robot holds still. Nothing but
    `start` and `stop` waits for it: SIGKILL ends no process that sleeps in a driver, and the
    thread that polls is the one that publishes zero motion and hears the e-stop.

    :param settings: what the worker loads
    :param load_timeout: longest load, and longest step of the warm-up [s]
    :param answer_timeout: longest wait for one chunk [s]
    :param imagine_timeout: longest wait for one imagined frame [s]
    :param heartbeat_timeout: longest silence of an idle worker [s]
    :param max_restarts: restarts within `restart_window`
    :param restart_window: [s]
    :param python: interpreter of the worker; '': that of this process
    :param on_result: called from the reader thread when there is something to poll
    """

    def __init__(self, settings: WorkerSettings, *, load_timeout: float, answer_timeout: float,
                 imagine_timeout: float, heartbeat_timeout: float, max_restarts: int,
                 restart_window: float, python: str = '',
                 on_result: Callable[[], None] = lambda: None) -> None:
        self._settings = settings
        self._load_timeout = load_timeout
        self._answer_timeout = answer_timeout
        self._imagine_timeout = imagine_timeout
        self._heartbeat = Watchdog('worker heartbeat', int(heartbeat_timeout * _SECOND_NS))
        self._budget = RestartBudget(max_restarts, int(restart_window * _SECOND_NS))
        self._python = str(Path(python).expanduser()) if python else sys.executable
        self._on_result = on_result
        self._frames = SharedFrames(settings.frame_memory)
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._inbox: list[object] = []
        self._lock = threading.Lock()
        self._info: BackendInfo | None = None
        self._reader: threading.Thread | None = None
        self._reapers: list[threading.Thread] = []
        self._request: int | None = None
        self._preparing = False
        self._deadline = 0.0  # [s] monotonic: of answer, preparation, load or warm-up step
        self._retry_delay = _RETRY_DELAY
        self._retry_at = 0.0  # [s] monotonic
        self._overrun = ''  # what to say when an answer or a preparation misses it
        self.health = Health.STOPPED
        self.fault = ''
        self.restarts = 0
        self.memory_bytes = 0

    def start(self, should_abort: Callable[[], bool] = lambda: False) -> BackendInfo:
        """Start the worker and wait until it is ready; see `Backend.start`.

        A warm-up that goes on when `load_timeout` is over is left to `poll`, so that the caller
        does not wait for minutes: the worker is LOADING then, as after a restart.
        """
        try:
            self._launch()
        except OSError as error:
            self.stop()
            raise InferenceError(f'the inference worker cannot be started: {error}; look at '
                                 f'worker.python, which is {self._python!r}') from None
        longest = self._deadline
        while self.health is Health.LOADING and not should_abort():
            time.sleep(_POLL_PERIOD)
            self._read_inbox()
            self._check_deadlines()
            if (self.health is Health.LOADING and self._info is not None
                    and time.monotonic() > longest):
                self.fault = 'the inference worker is still warming up'
                return self._info
        if self.health is not Health.READY or self._info is None:
            fault = self.fault or 'interrupted while loading'
            self._dismiss()  # without a grace: a worker that loads does not listen
            self.stop()
            raise InferenceError(fault)
        return self._info

    def submit(self, request: int, observation: Observation) -> None:
        """Send one observation; see `Backend.submit`."""
        self._check_free()
        slots = self._frames.write(observation.frames)
        self._ask(Request(request, slots, observation.instruction, observation.state),
                  self._answer_timeout, 'answer_timeout')

    def imagine(self, request: int, action: NDArray[np.floating], frame: Frame | None) -> None:
        """Send an action, and a frame to start from; see `Backend.imagine`."""
        self._check_free()
        slots = () if frame is None else self._frames.write((frame,))
        self._ask(Imagine(request, np.asarray(action), slots), self._imagine_timeout,
                  'imagine_timeout')

    def prepare(self, frames: tuple[Frame, ...], instruction: str) -> None:
        """Send frames ahead of their successor; see `Backend.prepare`."""
        if self.health is not Health.READY or self.busy or self._preparing:
            return
        with contextlib.suppress(FrameError):  # `submit` will say so
            slots = self._frames.write(frames)
            self._preparing = True
            self._expect_answer(self._answer_timeout, 'answer_timeout')
            self._send(Prepare(slots, instruction))

    def poll(self) -> list[Result]:
        """Collect answers, check deadlines, restart; see `Backend.poll`."""
        results = self._read_inbox()
        self._check_deadlines()
        if self.health is Health.DOWN:
            if self._request is not None:
                results.append(Result(self._request, None, self.fault))
                self._request = None
            self._restart()
        return results

    def stop(self) -> None:
        """Ask the worker to leave, then make it; see `Backend.stop`.

        One that does not even die of SIGKILL is left to the kernel, with an error in the log.
        """
        self._send(Stop())
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_TIMEOUT)
        self._dismiss()
        self._await_reapers()
        self._frames.close()
        self._request = None
        self.health = Health.STOPPED

    @property
    def busy(self) -> bool:
        """Whether a request is not answered yet."""
        return self._request is not None

    @property
    def _computing(self) -> bool:
        """Whether the worker computes: it sends no heartbeat until it has answered."""
        return self.busy or self._preparing

    @property
    def heartbeat_age(self) -> float:
        """Time since the last sign of life [s]."""
        return (self._heartbeat.age_ns(time.monotonic_ns()) or 0) / _SECOND_NS

    @property
    def process_id(self) -> int | None:
        """Process id of the worker, for diagnostics and tests."""
        return None if self._process is None else self._process.pid

    def _check_free(self) -> None:
        if self.health is not Health.READY or self.busy:
            raise InferenceError(f'the worker was asked while it is {self.health.value}'
                                 f'{", busy with another request" if self.busy else ""}')

    def _ask(self, request: Request | Imagine, timeout: float, parameter: str) -> None:
        self._request = request.number
        self._expect_answer(timeout, parameter)
        self._send(request)

    def _expect_answer(self, timeout: float, parameter: str) -> None:
        self._deadline = time.monotonic() + timeout
        self._overrun = (f'the inference worker did not answer within {timeout:g} s; it hangs, '
                         f'or worker.{parameter} is too short for this machine')

    def _launch(self) -> None:
        ours, theirs = Pipe()
        # What reaches the whole process group waits until the worker can ignore it.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, TERMINAL_SIGNALS)
        try:
            self._process = subprocess.Popen(
                [self._python, '-P', '-m', 'worldvla_ros.inference.worker', str(theirs.fileno()),
                 str(self._frames.descriptor)],
                pass_fds=(theirs.fileno(), self._frames.descriptor), stdin=subprocess.DEVNULL,
                env=_environment(self._python))
        except OSError:
            ours.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            theirs.close()
        self._connection = ours
        self._inbox = []
        self._preparing = False
        self.health = Health.LOADING
        self._deadline = time.monotonic() + self._load_timeout
        self._heartbeat.feed(time.monotonic_ns())
        self._send(self._settings)
        self._reader = threading.Thread(
            target=self._listen, args=(ours, self._process, self._inbox), daemon=True,
            name='worker reader')
        self._reader.start()

    def _listen(self, connection: Connection, process: subprocess.Popen[bytes],
                inbox: list[object]) -> None:
        """Move messages from the pipe to the inbox; the last one is None."""
        message: object = ''
        while message is not None:
            try:
                message = connection.recv()
            except (EOFError, OSError):
                message = None
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_EXIT_TIME)  # here, so that who reads the inbox need not wait
            except Exception as error:  # of any type: unpickling runs what libraries define
                message = Failed('cannot read what the inference worker sent: '
                                 f'{type(error).__name__}: {error}', traceback.format_exc())
            with self._lock:
                inbox.append(message)
            if not isinstance(message, Heartbeat):
                self._on_result()

    def _read_inbox(self) -> list[Result]:
        with self._lock:
            messages = self._inbox[:]
            del self._inbox[:]
        results = []
        for message in messages:
            self._heartbeat.feed(time.monotonic_ns())
            if isinstance(message, Answer):
                results += self._take_answer(message)
            elif isinstance(message, Prepared):
                self._preparing = False
                if message.detail:
                    _logger.debug('%s', message.detail)
            elif isinstance(message, Heartbeat):
                self.memory_bytes = message.memory_bytes
            elif isinstance(message, Loaded):
                self._info = message.info
                self._deadline = time.monotonic() + self._load_timeout
            elif isinstance(message, Progress):
                _logger.debug('the worker warms up: %s', message.step)
                self._deadline = time.monotonic() + self._load_timeout
            elif isinstance(message, Ready):
                self.health = Health.READY
                self.fault = ''
            elif isinstance(message, Failed):
                _logger.debug('%s', message.detail)
                self._fail(message.error)
            elif message is None and self.health in (Health.LOADING, Health.READY):
                self._fail(f'the inference worker died{self._exit_status()}')
        return results

    def _take_answer(self, answer: Answer) -> list[Result]:
        if answer.number != self._request:
            return []
        self._request = None
        if answer.error:
            _logger.debug('%s', answer.detail)
        return [Result(answer.number, answer.chunk, answer.error, answer.imagined)]

    def _check_deadlines(self) -> None:
        now = time.monotonic()
        if self._connection is not None and self._connection.poll(0):
            return  # after a stall of this process its answers wait for the reader thread
        if self.health is Health.LOADING and now > self._deadline:
            self._fail(f'the inference worker did not load, or hung in its warm-up, for '
                       f'{self._load_timeout:g} s; raise worker.load_timeout or use a smaller '
                       f'checkpoint, and get one of the Hub before: hf download REPOSITORY '
                       '(--include FOLDER/* for one folder of several)')
        elif self.health is Health.READY and self._computing and now > self._deadline:
            self._fail(self._overrun)
        elif (self.health is Health.READY and not self._computing
              and self._heartbeat.expired(time.monotonic_ns())):
            self._fail('the inference worker fell silent')

    def _fail(self, fault: str) -> None:
        self.fault = fault
        self.health = Health.DOWN
        self._dismiss()

    def _restart(self) -> None:
        if time.monotonic() < self._retry_at:
            return
        if not self._budget.allow(time.monotonic_ns()):
            self.health = Health.FAILED
            self.fault += ('; its restart budget is spent: deactivate the node, clean it up, '
                           'configure and activate it (ros2 lifecycle set), then give the '
                           'instruction again')
            return
        self.restarts += 1
        try:
            self._launch()
            self._retry_delay = _RETRY_DELAY
        except OSError as error:  # no memory, processes or descriptors left, for the moment
            self._fail(f'the inference worker cannot be started: {error}')
            self._retry_at = time.monotonic() + self._retry_delay
            self._retry_delay *= 2

    def _send(self, message: object) -> None:
        if self._connection is None:
            return
        with contextlib.suppress(OSError):  # the reader thread sees the same end and reports it
            self._connection.send(message)

    def _dismiss(self) -> None:
        """Kill the worker, if there is one, and leave what remains of it to a thread."""
        process, self._process = self._process, None
        connection, self._connection = self._connection, None
        reader, self._reader = self._reader, None
        if process is None or connection is None or reader is None:
            return
        process.kill()
        reaper = threading.Thread(target=_reap, args=(process, reader, connection), daemon=True,
                                  name=f'reaper of worker {process.pid}')
        self._reapers = [one for one in self._reapers if one.is_alive()] + [reaper]
        reaper.start()

    def _await_reapers(self) -> None:
        """Wait, but not for ever, until all that was dismissed is gone; log what is not."""
        deadline = time.monotonic() + _STOP_TIMEOUT
        for reaper in self._reapers:
            reaper.join(max(0.0, deadline - time.monotonic()))
        self._reapers = [one for one in self._reapers if one.is_alive()]
        for reaper in self._reapers:
            _logger.error(
                'the %s still waits %g s after SIGKILL: the process hangs in the kernel, mostly '
                'in a driver or a network file system (ps -o stat,wchan -p PID); it may keep '
                'memory of the device until the machine restarts', reaper.name, _STOP_TIMEOUT)

    def _exit_status(self) -> str:
        status = None if self._process is None else self._process.poll()
        if status is None:
            return ''
        return f' by signal {-status}' if status < 0 else f' with exit status {status}'


def _reap(process: subprocess.Popen[bytes], reader: threading.Thread,
          connection: Connection) -> None:
    """See a killed worker off, however long its death takes."""
    process.wait()
    reader.join()  # before: closed under it, the descriptor could become another file's
    connection.close()


def _environment(python: str) -> dict[str, str]:
    """Environment of a worker: this interpreter's own search path, whatever set it up.

    Another interpreter finds its own packages, and needs to be shown this one alone.
    """
    shown = sys.path if python == sys.executable else [str(Path(__file__).parents[2])]
    return {**os.environ, 'PYTHONPATH': os.pathsep.join(path for path in shown if path),
            'TOKENIZERS_PARALLELISM': 'false'}
