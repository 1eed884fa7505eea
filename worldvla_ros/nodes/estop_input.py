# SPDX-License-Identifier: Apache-2.0
"""The topic ~/estop and its latch, which outlive every deactivate, cleanup and configure."""

from collections.abc import Callable
import time

from rclpy.event_handler import QoSRequestedIncompatibleQoSInfo, SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import ReliabilityPolicy
from std_msgs.msg import Bool

from worldvla_ros.control.settings import ControllerSettings
from worldvla_ros.nodes.parameters import read_one
from worldvla_ros.safety.watchdog import EStop


class EStopInput:
    """
    Listens as long as the node lives. Raises ConfigError for a heartbeat that is out of range.

    A publisher whose messages cannot arrive, because it is best effort, locks the latch, too:
    nobody would hear its button.

    :param on_lock: called whenever the topic locks the latch
    """

    def __init__(self, node: Node, on_lock: Callable[[], None]) -> None:
        heartbeat = read_one(node, ControllerSettings, 'control.heartbeat_estop')
        self.latch = EStop(round(heartbeat * 1e9) or None)
        self._on_lock = on_lock
        self._node = node
        self._subscription = node.create_subscription(
            Bool, '~/estop', self._on_message, 10,
            event_callbacks=SubscriptionEventCallbacks(incompatible_qos=self._on_unheard))

    def reset(self) -> bool:
        """Unlock if the input is released, alive and can be heard; return whether it is."""
        publishers = self._node.get_publishers_info_by_topic(self._subscription.topic_name)
        heard = all(one.qos_profile.reliability is not ReliabilityPolicy.BEST_EFFORT
                    for one in publishers)
        return heard and self.latch.reset(time.monotonic_ns())

    def _on_unheard(self, _: QoSRequestedIncompatibleQoSInfo) -> None:
        self.latch.lock('a best-effort publisher of its topic cannot be heard; make it reliable')
        self._node.get_logger().error(f'e-stop locked: {self.latch.cause}')
        self._on_lock()

    def _on_message(self, message: Bool) -> None:
        self.latch.set(message.data, time.monotonic_ns())
        if message.data:
            self._on_lock()
