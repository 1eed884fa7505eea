# SPDX-License-Identifier: Apache-2.0
"""A terminal to record demonstrations: a sentence starts one, Enter keeps it, - throws it away.

Somebody else moves the robot, by DeltaAction messages on the topic of the commands; nothing is
sent from here.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
import contextlib
from pathlib import Path
import sys
import threading

import numpy as np
import rclpy
from rclpy.exceptions import NameValidationException, ParameterException
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions

from worldvla_ros.arguments import is_text
from worldvla_ros.errors import RecordingError, WorldVLAError
from worldvla_ros.graph import POLICY_NODE
from worldvla_ros.held_signals import signals_held
from worldvla_ros.nodes.parameters import check_files
from worldvla_ros.nodes.recorder import RECORDER_NODE, Recorder
from worldvla_ros.nodes.runtime import start_program
from worldvla_ros.recording.demonstration_file import add_demonstration, demonstration_file
from worldvla_ros.recording.timeline import RecordedEpisode

HELP = ('Type what the robot is about to do and press Enter, then move it. Enter keeps the '
        'demonstration, - and Enter throws it away. Ctrl-D leaves.')
DISCARD = '-'


class Terminal:
    """One conversation about demonstrations.

    :param ask: shows a prompt and returns the line that is typed
    """

    def __init__(self, recorder: Recorder, folder: Path, ask: Callable[[str], str]) -> None:
        self._recorder, self._folder, self._ask = recorder, folder, ask

    def converse(self) -> None:
        """Record until the input ends, with EOFError."""
        while True:
            instruction = ' '.join(self._ask('instruction> ').split())
            if instruction in ('', DISCARD):
                print(HELP, flush=True)
                continue
            if not is_text(instruction):
                complain('not recording: this line is not UTF-8')
                continue
            try:
                demonstration_file(self._folder, instruction)
                silent = self._recorder.begin()
            except RecordingError as error:
                complain(f'not recording: {error}')
                continue
            if silent:
                complain(f'nothing usable comes on {" and ".join(silent)}: what is recorded is '
                         'for a policy that does not read the state of the arm')
            self._finish(instruction)

    def _finish(self, instruction: str) -> None:
        """Write what is kept; where that fails, what was recorded waits for another try."""
        episode = None
        try:
            print(f'recording {instruction!r}', flush=True)
            while self._keep():
                with signals_held():  # Ctrl-C loses nothing of what is kept
                    episode = self._recorder.end() if episode is None else episode
                    if self._write(instruction, episode):
                        return
        except RecordingError as error:
            complain(f'thrown away: {error}')
        finally:
            self._recorder.throw_away()

    def _keep(self) -> bool:
        """Ask until it is said whether something is kept."""
        try:
            while answer := self._ask(f'Enter keeps it, {DISCARD} throws it away> ').strip():
                if answer == DISCARD:
                    print('thrown away', flush=True)
                    return False
                complain(f'expected Enter or {DISCARD}, got {answer!r}')
            return True
        except (EOFError, KeyboardInterrupt):
            complain('\nthrown away: this demonstration was not ended')
            raise

    def _write(self, instruction: str, episode: RecordedEpisode) -> bool:
        """Write an episode, or say why it cannot be."""
        try:
            path, name = add_demonstration(self._folder, instruction, episode)
        except RecordingError as error:
            complain(f'not written yet: {error}')
            return False
        print(f'kept as {name} of {path}: {describe(episode, self._recorder.config.control.rate)}',
              flush=True)
        return True


def describe(episode: RecordedEpisode, rate: float) -> str:
    """Say in a line what a demonstration holds, and what is wrong with its actions."""
    parts = [f'{len(episode)} steps, {len(episode) / rate:.1f} s',
             'without the state of the arm' if episode.positions is None else
             'with the state of the arm']
    if episode.wrist is not None:
        parts.append('with the wrist camera')
    if episode.repeats:
        parts.append(f'{episode.repeats} steps with the picture of the step before, which the '
                     'policy node never shows: take a faster camera, or a lower control.rate')
    beyond = int((np.abs(episode.actions) > 1.0).any(1).sum())
    if beyond:
        parts.append(f'{beyond} actions beyond 1.0, which no policy can say: raise '
                     'scale.translation or scale.rotation, or move slower')
    return ', '.join(parts)


def complain(text: str) -> None:
    """Say what went wrong where it is seen, also when what is printed goes to a file."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def spinning(recorder: Recorder) -> Iterator[None]:
    """Let a node hear, on a thread of its own."""
    executor = SingleThreadedExecutor()
    executor.add_node(recorder)
    thread = threading.Thread(target=executor.spin, daemon=True)
    thread.start()
    try:
        yield
    finally:
        executor.shutdown(timeout_sec=1.0)
        thread.join(1.0)
        recorder.destroy_node()


def run(options: argparse.Namespace, arguments: list[str]) -> int:
    """Run one conversation."""
    recorder = Recorder(options.commands)
    with spinning(recorder):
        check_files(recorder, arguments)
        print(HELP, flush=True)
        terminal = sys.stdin.isatty()
        with contextlib.suppress(EOFError):
            Terminal(recorder, options.out,
                     lambda prompt: input(prompt if terminal else '')).converse()
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; ROS arguments (--ros-args ...) are understood, too."""
    parser = argparse.ArgumentParser(prog='record', description=f'{__doc__} {HELP}')
    parser.add_argument('--out', type=Path, required=True,
                        help='folder of the demonstrations, one file per sentence; what is there '
                             'is added to')
    parser.add_argument('--commands', default=f'/{POLICY_NODE}/action', metavar='TOPIC',
                        help='DeltaAction messages that move the arm (default: %(default)s)')
    arguments = sys.argv[1:] if argv is None else list(argv)
    options = start_program(parser, arguments, signal_handlers=SignalHandlerOptions.NO)
    try:
        return run(options, arguments)
    except KeyboardInterrupt:
        return 130
    except (WorldVLAError, NameValidationException, ParameterException) as error:
        complain(f'{RECORDER_NODE}: {str(error).splitlines()[0]}')
        return 2
    finally:
        rclpy.utilities.try_shutdown()
