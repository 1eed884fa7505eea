# SPDX-License-Identifier: Apache-2.0
"""The topic ~/estop and its latch, which outlive every deactivate, cleanup and configure."""

from collections.abc import Callable
import time

from rclpy.event_handler import (
    QoSRequestedIncompatibleQoSInfo,
    QoSSubscriptionMatchedInfo,
    SubscriptionEventCallbacks,
)
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.subscription import Subscription
from rclpy.topic_endpoint_info import TopicEndpointInfo
from std_msgs.msg import Bool

from worldvla_ros.control.settings import ControllerSettings
from worldvla_ros.nodes.parameters import read_one
from worldvla_ros.safety.watchdog import EStop

_TOPIC = '~/estop'
_KEPT = 1000  # messages that wait while a policy loads: a press must not be pushed out of them
# Of what a publisher keeps, the last counts: an older press may have been released and reset.
_LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class EStopInput:
    """
    Listens as long as the node lives. Raises ConfigError for a heartbeat that is out of range.

    The topic belongs to one publisher. A second one locks the latch, which stays locked while it
    is there: what one of them releases, another may still press, and a message does not say whose
    it is. So no `false` releases it meanwhile, and once one is left, it must say so again. Several
    buttons need a node that joins them, as twist_mux has a topic for each.

    A publisher whose messages cannot arrive, because it is best effort, locks the latch, too:
    nobody would hear its button. What a transient_local publisher said last is heard although
    this node came later; who presses a button does not press it again because a node restarts.

    :param on_lock: called whenever the topic locks the latch
    """

    def __init__(self, node: Node, on_lock: Callable[[], None]) -> None:
        heartbeat = read_one(node, ControllerSettings, 'control.heartbeat_estop')
        self.latch = EStop(round(heartbeat * 1e9) or None)
        self._on_lock = on_lock
        self._node = node
        self._subscription = node.create_subscription(
            Bool, _TOPIC, self._on_message, _KEPT, event_callbacks=SubscriptionEventCallbacks(
                incompatible_qos=self._on_unheard, matched=self._on_matched))
        self._latched: Subscription | None = None
        self._matched = 0  # publishers

    def reset(self) -> str:
        """Unlock if the input is one, released, alive and can be heard; say why not, or ''."""
        publishers = self._publishers()
        if any(one.qos_profile.reliability is ReliabilityPolicy.BEST_EFFORT
               for one in publishers):
            return 'the e-stop topic has a publisher that cannot be heard; make it reliable'
        if len(publishers) > 1:
            return (f'the e-stop topic has {len(publishers)} publishers, and one may be pressed '
                    f'while another is released; leave it to one of them')
        if not self.latch.reset(time.monotonic_ns()):
            return ('the e-stop topic says true, or is silent; a false that came while it had two '
                    'publishers does not count')
        return ''

    def _publishers(self) -> list[TopicEndpointInfo]:
        return self._node.get_publishers_info_by_topic(self._subscription.topic_name)

    def _on_matched(self, matched: QoSSubscriptionMatchedInfo) -> None:
        """
        Lock for a second publisher; ask for what was said before, once one comes that keeps it.

        Two would cover for each other: the heartbeat of one hides that the other has died.

        What was said is not asked for at once: such a subscription fits no volatile publisher,
        which would be told, and tell its user, that its messages do not arrive; they do, by the
        other subscription.
        """
        self._matched = matched.current_count
        if matched.current_count > 1:
            self._lock(f'its topic has {matched.current_count} publishers; leave it to one of '
                       f'them')
        publishers = self._publishers()
        unknown = len(publishers) < matched.current_count  # the graph is learnt separately
        if self._latched is None and (unknown or any(
                one.qos_profile.durability is DurabilityPolicy.TRANSIENT_LOCAL
                for one in publishers)):
            self._latched = self._node.create_subscription(
                Bool, _TOPIC, self._on_message, _LATCHED,
                event_callbacks=SubscriptionEventCallbacks(use_default_callbacks=False))

    def _on_unheard(self, _: QoSRequestedIncompatibleQoSInfo) -> None:
        self._lock('a best-effort publisher of its topic cannot be heard; make it reliable')

    def _lock(self, cause: str) -> None:
        self.latch.lock(cause)
        self._node.get_logger().error(f'e-stop locked: {cause}')
        self._on_lock()

    def _on_message(self, message: Bool) -> None:
        if not message.data and self.latch.pressed and (
                max(self._matched, len(self._publishers())) > 1):
            self.latch.hear(time.monotonic_ns())
            return
        was_locked = self.latch.locked
        self.latch.set(message.data, time.monotonic_ns())
        if message.data and not was_locked:
            self._on_lock()
