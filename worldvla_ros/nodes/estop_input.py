# SPDX-License-Identifier: Apache-2.0
"""The topic ~/estop and its latch, which outlive every deactivate, cleanup and configure."""

from collections.abc import Callable
import time

from rclpy.node import Node
from std_msgs.msg import Bool

from worldvla_ros.control.settings import ControllerSettings
from worldvla_ros.nodes.parameters import read_one
from worldvla_ros.safety.watchdog import EStop


class EStopInput:
    """
    Listens as long as the node lives. Raises ConfigError for a heartbeat that is out of range.

    :param on_lock: called whenever the topic locks the latch
    """

    def __init__(self, node: Node, on_lock: Callable[[], None]) -> None:
        heartbeat = read_one(node, ControllerSettings, 'control.heartbeat_estop')
        self.latch = EStop(round(heartbeat * 1e9) or None)
        self._on_lock = on_lock
        node.create_subscription(Bool, '~/estop', self._on_message, 10)

    def _on_message(self, message: Bool) -> None:
        self.latch.set(message.data, time.monotonic_ns())
        if message.data:
            self._on_lock()
