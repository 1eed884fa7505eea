# SPDX-License-Identifier: Apache-2.0
"""A terminal to instruct the policy as one would teleoperate: a sentence starts, Enter stops."""

import argparse
import atexit
from collections.abc import Sequence
import contextlib
import os
from pathlib import Path
import readline
import sys
import threading

import rclpy
from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.signals import SignalHandlerOptions
from std_msgs.msg import String

from worldvla_ros.graph import POLICY_NODE
from worldvla_ros.msg import PolicyStatus

PROMPT = 'instruction> '
HELP = ('Type what the robot shall do and press Enter. An empty line stops it, the arrow keys '
        'bring back earlier lines, Ctrl-D leaves.')
_STATE_NAMES = {
    PolicyStatus.STATE_INACTIVE: 'not active', PolicyStatus.STATE_IDLE: 'idle',
    PolicyStatus.STATE_RUNNING: 'running', PolicyStatus.STATE_HOLDING: 'holding still',
    PolicyStatus.STATE_PAUSED: 'paused', PolicyStatus.STATE_ESTOPPED: 'e-stop',
    PolicyStatus.STATE_ERROR: 'ERROR'}
_MATCH_POLL = 0.05  # [s]


class Instructor(Node):
    """Publishes instructions and tells what becomes of them."""

    def __init__(self, policy: str, show: bool) -> None:
        super().__init__('instruct')
        self._said = ''
        self.active = ''
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
        self._instructions.publish(String(data=text))
        self.active = text
        return True

    def flush(self, timeout: float) -> bool:
        """Wait until the listener has acknowledged; only before leaving, since it blocks."""
        return self._instructions.wait_for_all_acked(Duration(seconds=timeout))

    @property
    def topic(self) -> str:
        """Where the instructions go."""
        return self._instructions.topic_name

    def _on_active(self, message: String) -> None:
        self.active = message.data
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
        if sys.stdin.isatty():
            print(f'\r\033[K  [{text}]\n{PROMPT}{readline.get_line_buffer()}', end='', flush=True)
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
        except EOFError:
            return
        if not node.send(line, timeout):
            print(f'nobody listens on {node.topic}; is the policy node active?', file=sys.stderr)


def run(options: argparse.Namespace) -> int:
    """Run one conversation, or send one instruction."""
    node = Instructor(options.policy, show=options.once is None)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    spinner = threading.Thread(target=executor.spin, daemon=True)
    spinner.start()
    try:
        if options.once is not None:
            if node.send(options.once, options.timeout) and node.flush(options.timeout):
                return 0
            print(f'nobody listens on {node.topic} after {options.timeout:g} s; is the policy '
                  f'node active?', file=sys.stderr)
            return 1
        with contextlib.suppress(KeyboardInterrupt):
            converse(node, options.timeout)
        node.quiet = True
        leave(node, options)
        return 0
    finally:
        node.stopping.set()
        executor.shutdown(timeout_sec=1.0)
        spinner.join(1.0)
        node.destroy_node()


def leave(node: Instructor, options: argparse.Namespace) -> None:
    """Stop the robot on leaving, or say that it goes on."""
    if not node.active:
        return
    if options.keep_going:
        print(f'\nleaving; the robot goes on with {node.active!r}')
    else:
        print(f'\nleaving; stopping {node.active!r}')
        node.send('', options.timeout)
        node.flush(options.timeout)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; ROS arguments (--ros-args ...) are understood, too."""
    parser = argparse.ArgumentParser(prog='instruct', description=HELP)
    parser.add_argument('--once', metavar='TEXT', help='send one instruction and leave')
    parser.add_argument('--policy', default=f'/{POLICY_NODE}', help='name of the policy node')
    parser.add_argument('--timeout', type=float, default=5.0, help='wait for a listener [s]')
    parser.add_argument('--keep-going', action='store_true',
                        help='do not stop the robot on leaving')
    arguments = sys.argv[1:] if argv is None else list(argv)
    options = parser.parse_args(rclpy.utilities.remove_ros_args(['instruct', *arguments])[1:])
    rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
    try:
        return run(options)
    except KeyboardInterrupt:
        return 130
    finally:
        rclpy.try_shutdown()
