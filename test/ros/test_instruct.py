# SPDX-License-Identifier: Apache-2.0
"""`instruct`, the program, beside a policy node on the mock backend."""

import contextlib
import fcntl
import os
from pathlib import Path
import pty
import select
import signal
import subprocess
import sys
import termios
import threading

from ament_index_python.packages import get_package_prefix
import numpy as np
import pytest
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import Image
from std_msgs.msg import String

from worldvla_ros.datatypes import Frame
from worldvla_ros.graph import POLICY_NODE
from worldvla_ros.nodes.conversions import frame_to_image
from worldvla_ros.nodes.policy_node import PolicyNode

TIMEOUT = 30.0


class Bystander(Node):
    """A camera that shows noise, and an ear for what the policy follows."""

    def __init__(self, context):
        super().__init__('bystander', context=context)
        self.followed = []
        latched = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.create_subscription(String, f'{POLICY_NODE}/active_instruction',
                                 lambda message: self.followed.append(message.data), latched)
        self._random = np.random.default_rng(0)
        self._camera = self.create_publisher(Image, 'image', 1)
        self.create_timer(0.05, self._show)

    def _show(self):
        noise = self._random.integers(0, 256, (64, 64, 3), np.uint8)
        self._camera.publish(
            frame_to_image(Frame(noise, self.get_clock().now().nanoseconds), 'camera'))


@pytest.fixture
def bystander(context, spin):
    """See Bystander."""
    return spin(Bystander(context))


@pytest.fixture
def policy(bystander, context, executor, spin, wait_for):
    """Return an active policy node."""
    node = spin(PolicyNode(executor, context=context,
                           parameter_overrides=[Parameter('backend', value='mock')]))
    wait_for(lambda: node._loop is not None and node._loop.active)
    return node


@pytest.fixture
def followed(bystander, policy):
    """What an active policy node has followed so far."""
    return bystander.followed


@pytest.fixture
def command(domain_id, monkeypatch, tmp_path):
    """Command line of the program; its history goes to a folder of the test."""
    monkeypatch.setenv('XDG_STATE_HOME', str(tmp_path))
    monkeypatch.setenv('TERM', 'xterm')
    return [str(Path(get_package_prefix('worldvla_ros')) / 'lib' / 'worldvla_ros' / 'instruct')]


def run(command, **options):
    """Run the program to its end."""
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False,
                          **options)


# --- scripts ----------------------------------------------------------------------------------


def test_once_delivers_one_sentence_and_leaves_the_robot_to_it(command, followed, wait_for):
    done = run([*command, '--once', 'pick up the milk'], stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stderr) == (0, '')
    wait_for(lambda: followed)
    assert followed == ['pick up the milk']


def test_once_stops_the_robot_with_an_empty_sentence(command, followed, wait_for):
    assert run([*command, '--once', '  pick up\tthe milk ']).returncode == 0
    assert run([*command, '--once', '']).returncode == 0
    wait_for(lambda: followed == ['pick up the milk', ''])


def test_once_delivers_the_sentence_that_is_followed_already_too(command, followed, wait_for):
    for count in (1, 2):
        assert run([*command, '--once', 'pick up the milk']).returncode == 0
        wait_for(lambda count=count: followed == count * ['pick up the milk'])


@pytest.mark.parametrize('text, hinder', [
    pytest.param('x' * 501, lambda node: None, id='too long'),
    pytest.param('go\x07', lambda node: None, id='no plain text'),
    pytest.param('go', lambda node: node._loop.controller.estop.lock('pressed'), id='e-stop'),
    pytest.param('go', lambda node: node.trigger_deactivate(), id='inactive')])
def test_once_fails_when_its_sentence_is_refused_or_ignored(
        command, policy, executor, wait_for, text, hinder):
    """Pins a bug: it ended with success as soon as the node had heard it."""
    wait_for(executor.create_task(hinder, policy).done)
    done = run([*command, '--once', text])
    assert done.returncode == 1
    assert 'refused or ignored' in done.stderr and f'/{POLICY_NODE}/status' in done.stderr
    assert 'Traceback' not in done.stderr


def test_once_without_a_listener_says_so_and_fails(command):
    done = run([*command, '--once', 'pick up the milk', '--timeout', '0.2'])
    assert done.returncode == 1
    assert f'nobody listens on /{POLICY_NODE}/instruction' in done.stderr
    assert 'Traceback' not in done.stderr


def test_once_reaches_a_policy_of_another_name(command):
    done = run([*command, '--once', 'go', '--timeout', '0.2', '--policy', '/left/policy'])
    assert done.returncode == 1 and '/left/policy/instruction' in done.stderr


def test_piped_lines_are_followed_in_order_and_the_end_stops_the_robot(
        command, followed, wait_for):
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True, bufsize=1) as process:
        for number, line in enumerate(['pick up the milk', '', '  pick up the ketchup  '], 1):
            process.stdin.write(f'{line}\n')
            wait_for(lambda number=number: len(followed) == number)
    assert process.returncode == 0
    wait_for(lambda: len(followed) == 4)
    assert followed == ['pick up the milk', '', 'pick up the ketchup', '']


def test_the_robot_goes_on_after_the_end_when_asked_to(command, followed, wait_for):
    done = run([*command, '--keep-going'], input='pick up the milk\n')
    assert done.returncode == 0 and "goes on with 'pick up the milk'" in done.stdout
    wait_for(lambda: followed)
    assert followed == ['pick up the milk']


@pytest.mark.parametrize('errors', ['surrogateescape', 'strict'])
def test_a_line_that_is_not_utf8_is_refused_and_the_next_one_counts(
        command, followed, wait_for, monkeypatch, errors):
    """Strict, as in most locales, pins a bug: it ended the program, and nothing the robot."""
    monkeypatch.setenv('PYTHONIOENCODING', f'utf-8:{errors}')
    done = subprocess.run(command, input=b'pick \xff\npick up the milk\n', capture_output=True,
                          timeout=TIMEOUT, check=False)
    assert done.returncode == 0 and b'not UTF-8' in done.stderr
    wait_for(lambda: followed == ['pick up the milk', ''])


@pytest.mark.parametrize('arguments', [
    ['--once', b'pick \xff'], ['--policy', 'a b'], ['--ros-args', '-r', 'nonsense']])
def test_a_bad_argument_is_told_in_one_line(command, arguments):
    done = subprocess.run([*command, *arguments], capture_output=True, timeout=TIMEOUT,
                          stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith(b'instruct: ')
    assert b'Traceback' not in done.stderr


# --- a terminal -------------------------------------------------------------------------------


def _take_terminal():
    """Make standard input the controlling terminal, so that closing it means SIGHUP."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Terminal:
    """The program in a terminal of its own."""

    def __init__(self, command):
        self._side, other = pty.openpty()
        self.process = subprocess.Popen(command, stdin=other, stdout=other, stderr=other,
                                        start_new_session=True, preexec_fn=_take_terminal)
        os.close(other)
        self.screen = ''
        self._closing = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def type(self, text):
        """Type keys; a line ends with a carriage return."""
        os.write(self._side, text.encode())

    def hang_up(self):
        """Close the window: the program's terminal is gone, which the kernel tells by SIGHUP."""
        if not self._closing.is_set():
            self._closing.set()  # a read in progress would keep the terminal alive
            self._reader.join(TIMEOUT)
            os.close(self._side)

    def _read(self):
        with contextlib.suppress(OSError):  # the other side is closed
            while not self._closing.is_set():
                if select.select([self._side], [], [], 0.05)[0]:
                    self.screen += os.read(self._side, 4096).decode(errors='replace')

    def close(self):
        """End the program if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.hang_up()


@pytest.fixture
def start(followed, wait_for):
    """Return a function that runs a command in a terminal until its first prompt."""
    with contextlib.ExitStack() as stack:
        def start(command):
            terminal = Terminal(command)
            stack.callback(terminal.close)
            wait_for(lambda: 'instruction> ' in terminal.screen)
            return terminal
        yield start


@pytest.fixture
def terminal(command, start):
    """A terminal that shows its first prompt."""
    return start(command)


def test_one_types_a_sentence_an_empty_line_and_an_earlier_line(terminal, followed, wait_for):
    terminal.type('pick up the milk\r')
    wait_for(lambda: followed[-1:] == ['pick up the milk'])
    wait_for(lambda: "following: 'pick up the milk'" in terminal.screen)
    wait_for(lambda: '[running]' in terminal.screen)
    terminal.type('\r')
    wait_for(lambda: followed[-1:] == [''])
    wait_for(lambda: '[no instruction]' in terminal.screen)
    terminal.type('\x1b[A\r')  # arrow up
    wait_for(lambda: followed[-1:] == ['pick up the milk'])
    terminal.type('\x04')  # Ctrl-D
    assert terminal.process.wait(TIMEOUT) == 0
    wait_for(lambda: followed[-1:] == [''])
    assert followed == ['pick up the milk', '', 'pick up the milk', '']
    assert "stopped 'pick up the milk'" in terminal.screen
    assert 'Traceback' not in terminal.screen


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP,
                                    signal.SIGQUIT])
def test_a_signal_to_end_stops_the_robot_too(terminal, followed, wait_for, number):
    terminal.type('pick up the milk\r')
    wait_for(lambda: followed)
    terminal.process.send_signal(number)
    assert terminal.process.wait(TIMEOUT) == 0
    wait_for(lambda: followed == ['pick up the milk', ''])
    assert 'Traceback' not in terminal.screen


UNINTERRUPTED = """
import signal, sys
from worldvla_ros.nodes import instruct
converse = instruct.converse
def converse_uninterrupted(*arguments):
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    converse(*arguments)
instruct.converse = converse_uninterrupted
sys.exit(instruct.main())
"""


def test_a_signal_that_does_not_interrupt_the_wait_for_a_key_stops_the_robot_too(
        command, start, followed, wait_for):
    """
    Pins a bug: one that came just before the wait for a key was heeded after the next key.

    Here another thread of the program takes the signal, which leaves the wait alone as well.
    """
    terminal = start([sys.executable, '-c', UNINTERRUPTED])
    terminal.type('pick up the milk\r')
    wait_for(lambda: followed)
    terminal.process.send_signal(signal.SIGTERM)
    assert terminal.process.wait(TIMEOUT) == 0
    wait_for(lambda: followed == ['pick up the milk', ''])
    assert 'Traceback' not in terminal.screen


def test_closing_the_terminal_stops_the_robot(terminal, followed, wait_for):
    terminal.type('pick up the milk\r')
    wait_for(lambda: followed)
    terminal.hang_up()
    terminal.process.wait(TIMEOUT)
    wait_for(lambda: followed == ['pick up the milk', ''])
