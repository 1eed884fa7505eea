# SPDX-License-Identifier: Apache-2.0
"""Run a node until a signal, and leave in order: the node says goodbye while ROS still works."""

import argparse
from collections.abc import Callable
import gc
import io
import os
from pathlib import Path
import signal
import sys
import threading
import time

import rclpy
from rclpy.exceptions import ParameterException
from rclpy.executors import SingleThreadedExecutor
from rclpy.logging import get_logger
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future
from rosgraph_msgs.msg import Clock

from worldvla_ros.errors import WorldVLAError
from worldvla_ros.inference.messages import TERMINAL_SIGNALS
from worldvla_ros.nodes.parameters import check_files
from worldvla_ros.nodes.ros_log import log_to_ros

STOP_SIGNALS = (*TERMINAL_SIGNALS, signal.SIGTERM)
_LAST_CALLBACKS = 20  # more than a node has goals and calls open at its end
_LAST_WAIT = 0.01  # [s] for each: a client may be asking for its result just now
_CLOCK_POLL = 0.1  # [s] between two looks whether to give up waiting for /clock


def start_program(parser: argparse.ArgumentParser, arguments: list[str], *,
                  signal_handlers: SignalHandlerOptions | None = None) -> argparse.Namespace:
    """
    Initialize ROS and return the options of a program, which exits with usage on wrong ones.

    What comes on standard input and is no text stays as it is (`is_text`), in every locale; that
    of most would end the program.

    :param arguments: those of the program and ROS arguments (--ros-args ...)
    """
    try:
        options = parser.parse_args(rclpy.utilities.remove_ros_args([parser.prog, *arguments])[1:])
        rclpy.init(args=arguments, signal_handler_options=signal_handlers)
    except RuntimeError as error:  # rclpy's errors about arguments have no public name
        parser.error(str(error).splitlines()[0])
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors='surrogateescape')
    return options


def run_node(make_node: Callable[[SingleThreadedExecutor], Node], *, about: str = '',
             args: list[str] | None = None) -> int:
    """
    Spin one node until one of STOP_SIGNALS, then call its `close`, if it has one.

    The program has ROS arguments alone. It exits with usage on others: rcl would drop them, and
    a limit of the arm would be lost without a word.

    A callback that takes long can be told to give up: the node's `interrupt`, if it has one, is
    called as soon as a signal comes, from another thread.

    A thread waits for the signals, not a handler: rclpy's own would close the context first, and
    no last command could be sent; Python's would run only once the executor returns. One thread
    runs all callbacks: a MultiThreadedExecutor makes timers jitter by many milliseconds, and the
    EventsExecutor of rclpy 7.1 locks up with simulated time.

    :param make_node: gets the executor; the node may give it tasks from other threads
    :param about: what the program is, for its --help
    """
    arguments = sys.argv if args is None else args
    arrived, wake_up = os.pipe()
    os.set_blocking(wake_up, False)
    signal.set_wakeup_fd(wake_up)
    for number in STOP_SIGNALS:
        under_nohup = number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN
        if not under_nohup:
            signal.signal(number, lambda *_: None)
    try:
        _ros_alone(about, arguments[0]).parse_args(
            rclpy.utilities.remove_ros_args(arguments)[1:])
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    except RuntimeError as error:  # rclpy's errors about arguments have no public name
        get_logger('worldvla_ros').error(f'cannot start: {str(error).splitlines()[0]}')
        return 1
    log = log_to_ros()
    executor = SingleThreadedExecutor()
    stop = threading.Event()

    def wait_for_signal() -> None:
        os.read(arrived, 1)
        if hasattr(node, 'interrupt'):
            node.interrupt()
        stop.set()
        executor.create_task(lambda: None)  # ends the wait for the next callback
    try:
        node = make_node(executor)
        log.node = node.get_logger()
        check_files(node, arguments)
    except (WorldVLAError, ParameterException) as error:
        get_logger('worldvla_ros').error(f'cannot start: {error}')
        rclpy.utilities.try_shutdown()
        return 1
    threading.Thread(target=wait_for_signal, daemon=True, name='signals').start()
    executor.add_node(node)
    gc.collect()
    gc.freeze()  # what lives now lives on: later collections need not look at it
    try:
        # Not until a future completes: rclpy 7.1 hangs a callback on it at every spin, so that
        # memory, and the pauses of the garbage collector, grow with the hours.
        while executor.context.ok() and not stop.is_set():
            executor.spin_once()
    finally:
        if hasattr(node, 'close'):
            node.close()
        for _ in range(_LAST_CALLBACKS):  # what `close` answered still has to be sent
            executor.spin_once(timeout_sec=_LAST_WAIT)
        executor.shutdown(timeout_sec=1.0)
        node.destroy_node()
        rclpy.utilities.try_shutdown()
    return 0


def _ros_alone(about: str, program: str) -> argparse.ArgumentParser:
    """Return a parser of what ROS leaves of a command line: nothing, or a wish for help."""
    return argparse.ArgumentParser(
        prog=Path(program).name, description=about,
        usage='%(prog)s [-h] [--ros-args -p NAME:=VALUE -r FROM:=TO --params-file FILE ...]')


def wait_for_clock(node: Node, timeout: float,
                   should_abort: Callable[[], bool] = lambda: False) -> bool:
    """Return whether the simulated time that a node follows is published within a timeout [s]."""
    probe = rclpy.create_node('worldvla_clock_probe', context=node.context,
                              start_parameter_services=False, use_global_arguments=False)
    came: Future = Future()
    probe.create_subscription(Clock, node.resolve_topic_name('/clock'),
                              lambda _: came.done() or came.set_result(True),
                              qos_profile_sensor_data)
    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(probe)
    deadline = time.monotonic() + timeout
    while not came.done() and time.monotonic() < deadline and not should_abort():
        executor.spin_until_future_complete(came, timeout_sec=_CLOCK_POLL)
    executor.shutdown()
    probe.destroy_node()
    return came.done()
