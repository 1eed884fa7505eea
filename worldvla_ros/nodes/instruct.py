# SPDX-License-Identifier: Apache-2.0
"""A terminal to instruct the policy as one would teleoperate: a sentence starts, Enter stops.

Like a dead-man switch it stops the robot when it goes, also when its terminal is closed.
"""

import argparse
import atexit
from collections.abc import Callable, Iterator, Sequence
import contextlib
import os
from pathlib import Path
import readline
import signal
import sys
import threading

import rclpy
from rclpy.duration import Duration
from rclpy.exceptions import NameValidationException
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.signals import SignalHandlerOptions
from std_msgs.msg import String

from worldvla_ros.arguments import is_text
from worldvla_ros.graph import POLICY_NODE
from worldvla_ros.msg import PolicyStatus
from worldvla_ros.nodes.runtime import start_program

PROMPT = 'instruction> '
HELP = ('Type what the robot shall do and press Enter. An empty line stops it, the arrow keys '
        'bring back earlier lines, Ctrl-D leaves.')
_STATE_NAMES = {
    PolicyStatus.STATE_INACTIVE: 'not active', PolicyStatus.STATE_IDLE: 'idle',
    PolicyStatus.STATE_RUNNING: 'running', PolicyStatus.STATE_HOLDING: 'holding still',
    PolicyStatus.STATE_PAUSED: 'paused', PolicyStatus.STATE_ESTOPPED: 'e-stop',
    PolicyStatus.STATE_ERROR: 'ERROR'}
_MATCH_POLL = 0.05  # [s]
_LEAVE_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""Beside Ctrl-C. SIGHUP: the terminal was closed; SIGQUIT: Ctrl-\\ in it."""
_NUDGE_PERIOD = 0.05  # [s]


class Instructor(Node):
    """Publishes instructions and tells what becomes of them."""

    def __init__(self, policy: str, show: bool) -> None:
        super().__init__('instruct')
        self._said = ''
        self._sent = ''
        self._echoed: str | None = None  # until the policy has said what it follows
        self._answered = False  # whether it has said so since something was sent
        self.quiet = sys.stdin.isatty()  # until the first prompt and after the last
        self.stopping = threading.Event()
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._instructions = self.create_publisher(String, f'{policy}/instruction', 10)
        self.create_subscription(String, f'{policy}/active_instruction', self._on_active, latched)
        if show:
            self.create_subscription(PolicyStatus, f'{policy}/status', self._on_status, 10)

    def send(self, text: str, timeout: float) -> bool:
        """
        Publish once somebody listens; return False if nobody does in time.

        :param timeout: for a listener to appear [s]
        """
        waited = 0.0
        while not self._instructions.get_subscription_count():
            if waited >= timeout or self.stopping.wait(_MATCH_POLL):
                return False
            waited += _MATCH_POLL
        self._sent = text  # before: what may be on its way has to be stopped, too
        self._answered = False
        self._instructions.publish(String(data=text))
        return True

    def flush(self, timeout: float) -> bool:
        """Wait until the listener has acknowledged; only before leaving, since it blocks."""
        return self._instructions.wait_for_all_acked(Duration(seconds=timeout))

    def follows(self, text: str, timeout: float) -> bool:
        """
        Wait until the policy says that it follows a text; return False if it does not in time.

        :param text: as it was sent; empty: that it follows nothing
        :param timeout: for the policy to say so [s]
        """
        followed, waited = ' '.join(text.split()), 0.0  # as checked_instruction makes it
        # An older word that it follows the same says nothing of what was sent; one that it follows
        # nothing does, because an inactive policy ignores a stop and says no more.
        while self._echoed != followed or (followed and not self._answered):
            if waited >= timeout or self.stopping.wait(_MATCH_POLL):
                return False
            waited += _MATCH_POLL
        return True

    @property
    def topic(self) -> str:
        """Where the instructions go."""
        return self._instructions.topic_name

    @property
    def active(self) -> str:
        """What the robot follows, or will as soon as it hears of it; empty: nothing."""
        return self._sent or self._echoed or ''

    def _on_active(self, message: String) -> None:
        self._echoed, self._answered = message.data, True
        self._say(f'following: {message.data!r}' if message.data else 'no instruction')

    def _on_status(self, message: PolicyStatus) -> None:
        state = _STATE_NAMES.get(message.state, '?')
        said = f'{state}: {message.halt_text}' if message.halt_text else state
        if said != self._said:
            self._said = said
            self._say(said)

    def _say(self, text: str) -> None:
        """Print a line above the one that is being typed."""
        if self.quiet:
            return
        with contextlib.suppress(OSError):  # the terminal may have gone
            if sys.stdin.isatty():
                print(f'\r\033[K  [{text}]\n{PROMPT}{readline.get_line_buffer()}', end='',
                      flush=True)
            else:
                print(f'[{text}]', flush=True)


def keep_history() -> None:
    """Read the lines of earlier sessions and write them back at exit."""
    state = Path(os.environ.get('XDG_STATE_HOME', Path.home() / '.local' / 'state'))
    path = state / 'worldvla_ros' / 'instruct_history'
    with contextlib.suppress(OSError):  # a terminal without a history is still of use
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            readline.read_history_file(path)
    readline.set_history_length(1000)

    def save() -> None:
        with contextlib.suppress(OSError):
            readline.write_history_file(path)
    atexit.register(save)


def converse(node: Instructor, timeout: float) -> None:
    """Send each line that is typed or piped in, until the input ends."""
    terminal = sys.stdin.isatty()
    if terminal:
        keep_history()
        print(HELP)
        node.quiet = False
    while True:
        try:
            line = input(PROMPT if terminal else '').strip()
        except (EOFError, OSError):  # the input ended, or its terminal has gone
            return
        if not is_text(line):
            print('not sent: this line is not UTF-8', file=sys.stderr)
        elif not node.send(line, timeout):
            print(f'nobody listens on {node.topic}; is the policy node active?', file=sys.stderr)


def converse_until_told(node: Instructor, timeout: float) -> None:
    """Converse until the input or a signal ends it; then none of _LEAVE_SIGNALS counts."""
    with contextlib.suppress(KeyboardInterrupt), heed_signals():
        try:
            converse(node, timeout)
        finally:  # input from a closed terminal may end before its SIGHUP comes
            set_leave_handler(signal.SIG_IGN)


def run(options: argparse.Namespace) -> int:
    """Run one conversation, or send one instruction."""
    node = Instructor(options.policy, show=options.once is None)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    spinner = threading.Thread(target=executor.spin, daemon=True)
    spinner.start()
    try:
        if options.once is not None:
            return instruct_once(node, options)
        try:
            converse_until_told(node, options.timeout)
        finally:  # whatever ended it
            node.quiet = True
            leave(node, options)
        return 0
    finally:
        node.stopping.set()
        executor.shutdown(timeout_sec=1.0)
        spinner.join(1.0)
        node.destroy_node()


def instruct_once(node: Instructor, options: argparse.Namespace) -> int:
    """Send one instruction; return 0 when the policy has said that it follows it, else 1."""
    text, timeout = options.once, options.timeout
    if not node.send(text, timeout):
        print(f'nobody listens on {node.topic} after {timeout:g} s; is the policy node active?',
              file=sys.stderr)
        return 1
    if not text.strip():
        node.flush(timeout)  # a stop must arrive even where nothing is followed yet
    if not node.follows(text, timeout):
        print(f'the policy refused or ignored {text!r}; see {options.policy}/status (ros2 topic '
              f'echo) and the log of the node for the reason', file=sys.stderr)
        return 1
    return 0


def leave(node: Instructor, options: argparse.Namespace) -> None:
    """Stop the robot on leaving, or say that it goes on."""
    if not node.active:
        return
    active, outcome = node.active, 'the robot goes on with'
    if not options.keep_going:
        stopped = node.send('', options.timeout) and node.flush(options.timeout)
        outcome = 'stopped' if stopped else 'nobody listens any more who could stop'
    with contextlib.suppress(OSError):  # only now, because the terminal may have gone
        print(f'\nleaving; {outcome} {active!r}', flush=True)


def set_leave_handler(handler: Callable[[int, object], None] | signal.Handlers) -> None:
    """Set what happens when the program is told to end."""
    for number in _LEAVE_SIGNALS:
        signal.signal(number, handler)


@contextlib.contextmanager
def heed_signals() -> Iterator[None]:
    """
    See that a signal ends a wait for input, whenever it comes.

    Python runs a signal's handler between two of its own instructions. One that comes just before
    the main thread begins to wait for a key would be heeded after the next key only, and the robot
    would move on; therefore the main thread is woken until it has left.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    left = threading.Event()
    main = threading.get_ident()

    def nudge() -> None:
        os.read(reader, 1)  # until Python writes that a signal has come, or the writer is closed
        while not left.wait(_NUDGE_PERIOD):
            signal.pthread_kill(main, signal.SIGUSR1)

    signal.signal(signal.SIGUSR1, lambda *_: None)  # a wait goes on after this one
    earlier = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    nudger = threading.Thread(target=nudge, daemon=True)
    nudger.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(earlier)
        left.set()
        os.close(writer)
        nudger.join()
        os.close(reader)


def interrupt_once(*_: object) -> None:
    """Do what Ctrl-C does; what is told after that must not interrupt the last stop."""
    set_leave_handler(signal.SIG_IGN)
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; ROS arguments (--ros-args ...) are understood, too."""
    parser = argparse.ArgumentParser(prog='instruct', description=HELP)
    parser.add_argument('--once', metavar='TEXT',
                        help='send one instruction and leave; fails if it is not followed')
    parser.add_argument('--policy', default=f'/{POLICY_NODE}', help='name of the policy node')
    parser.add_argument('--timeout', type=float, default=5.0,
                        help='wait for a listener and, with --once, for it to follow [s]')
    parser.add_argument('--keep-going', action='store_true',
                        help='do not stop the robot on leaving')
    arguments = sys.argv[1:] if argv is None else list(argv)
    if not all(map(is_text, arguments)):
        parser.error('the arguments must be UTF-8')
    set_leave_handler(interrupt_once)
    options = start_program(parser, arguments, signal_handlers=SignalHandlerOptions.NO)
    try:
        return run(options)
    except KeyboardInterrupt:
        return 130
    except NameValidationException as error:
        print(f'instruct: {str(error).splitlines()[0]}', file=sys.stderr)
        return 2
    finally:
        rclpy.utilities.try_shutdown()
