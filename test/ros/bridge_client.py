# SPDX-License-Identifier: Apache-2.0
"""A bridge in this process, and a robot driver that stands where the policy stands."""

import threading
import time

from geometry_msgs.msg import PoseStamped
import numpy as np
from rcl_interfaces.msg import Log
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Header

from worldvla_ros.msg import DeltaAction, Episode
from worldvla_ros.nodes.conversions import command_to_action, to_ns, to_time
from worldvla_ros.safety.command import ActionScale, Command
from worldvla_ros.srv import ResetEpisode
from worldvla_sim.ros.libero_bridge import LiberoBridge

IMAGE_SIZE, TIMEOUT = 64, 20.0


class Robot(Node):
    """Stands where the policy stands, and keeps all that it hears."""

    def __init__(self, context):
        super().__init__('robot', context=context)
        self.clocks, self.episodes, self.images, self.joints = [], [], [], []
        self.wrist_images, self.poses, self.logs = [], [], []
        latched = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        for message_type, topic, inbox, qos in (
                (Clock, '/clock', self.clocks, 100), (Episode, 'episode', self.episodes, latched),
                (Image, 'camera/agentview/image_raw', self.images, 100),
                (Image, 'camera/wrist/image_raw', self.wrist_images, 100),
                (JointState, 'joint_states', self.joints, 100),
                (PoseStamped, 'ee_pose', self.poses, 100), (Log, '/rosout', self.logs, 100)):
            self.create_subscription(message_type, topic, inbox.append, qos)
        self.commands = self.create_publisher(DeltaAction, 'action', 10)
        self.resets = self.create_client(ResetEpisode, 'libero_bridge/reset')

    def reset(self, **request):
        """Start an episode and wait until its first frame is here; return the answer."""
        answer = self.resets.call_async(ResetEpisode.Request(**request))
        wait_until(answer.done)
        if answer.result().success:
            number = answer.result().episode
            wait_until(lambda: self.episodes and self.episodes[-1].episode == number)
            wait_until(lambda: self.newest_ns >= self.episode_ns)
        return answer.result()

    def send(self, action, *, stamp_ns=None, **fields):
        """Send controller input, (7,), as the answer to the newest frame unless told otherwise."""
        stamp_ns = self.newest_ns if stamp_ns is None else stamp_ns
        message = command_to_action(Command.from_controller_input(action, ActionScale()),
                                    Header(stamp=to_time(stamp_ns)))
        message.chunk_sequence = 1
        for name, value in fields.items():
            setattr(message, name, value)
        self.commands.publish(message)

    def play(self, actions):
        """Answer frame after frame; return the joints before and after, (n + 1, 9) [rad]."""
        trajectory = [self.joints[-1].position]
        for action in actions:
            before_ns = self.newest_ns
            self.send(action)
            wait_until(lambda before=before_ns: self.newest_ns > before)
            trajectory.append(self.joints[-1].position)
        return np.array(trajectory)

    @property
    def newest_ns(self):
        """Stamp of the newest state that is here whole: one topic may overtake another."""
        topics = (self.images, self.joints, self.poses)
        return min(to_ns(inbox[-1].header.stamp) if inbox else 0 for inbox in topics)

    @property
    def episode_ns(self):
        """Stamp of the newest episode message."""
        return to_ns(self.episodes[-1].header.stamp)


def wait_until(predicate, timeout=TIMEOUT):
    """Wait until a predicate holds; fail if it does not within a timeout [s]."""
    deadline = time.monotonic() + timeout
    while not predicate():
        assert time.monotonic() < deadline, f'not within {timeout:g} s'
        time.sleep(0.002)


def start(domain_id, **parameters):
    """Yield a bridge and a robot that share one thread, which alone touches OpenGL."""
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain_id)
    executor = SingleThreadedExecutor(context=context)
    parameters = {'assets': 'builtin', 'image_size': IMAGE_SIZE, **parameters}
    bridge = LiberoBridge(executor, context=context, parameter_overrides=[
        Parameter(name, value=value) for name, value in parameters.items()])
    robot = Robot(context)
    for node in (bridge, robot):
        executor.add_node(node)
    thread = threading.Thread(target=executor.spin, daemon=True)
    thread.start()
    wait_until(lambda: robot.resets.service_is_ready() and robot.count_publishers('episode')
               and robot.commands.get_subscription_count())
    yield bridge, robot
    closed = executor.create_task(bridge.close)
    wait_until(closed.done)
    executor.shutdown(timeout_sec=10)
    thread.join(10)
    assert not thread.is_alive()
    for node in (robot, bridge):
        node.destroy_node()
    context.try_shutdown()
