# SPDX-License-Identifier: Apache-2.0
"""The topics of cameras and arm: convert what comes, or say why it cannot be used."""

from collections.abc import Callable
import functools
from typing import Any

from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from rclpy.subscription import Subscription
from sensor_msgs.msg import CompressedImage, Image, JointState

from worldvla_ros.control.controller import PolicyController
from worldvla_ros.datatypes import Frame
from worldvla_ros.errors import FrameError, StateError
from worldvla_ros.nodes import conversions
from worldvla_ros.nodes.parameters import PolicyParameters
from worldvla_ros.nodes.reporting import CameraReport, Reporter
from worldvla_ros.policy.frame_history import PushResult

_CAMERA = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)  # only the newest
_LOG_PERIOD = 5.0  # [s] between two log lines of the same complaint
_AGAINST_DROPPED = {
    PushResult.DUPLICATE: 'give each frame a stamp of its own',
    PushResult.OUT_OF_ORDER: 'check the stamps, and that nobody else publishes the topic; after '
                             'a restart of the camera or simulator call reset_history',
    PushResult.OLD_CLOCK: 'let the clock be slewed, not set, while the robot runs',
    PushResult.ZERO_FILLED: 'check lens cap, exposure and driver'}


class SensorTopics:
    """
    Feeds the controller.

    :param on_input: called after each input, because in lockstep a command may be due then
    """

    def __init__(self, node: Node, config: PolicyParameters, controller: PolicyController,
                 reporter: Reporter, on_input: Callable[[], None]) -> None:
        self._node = node
        self._config = config
        self._controller = controller
        self._reporter = reporter
        self._on_input = on_input
        self._heard_gripper = False
        self._subscriptions = self._listen()

    def destroy(self) -> None:
        """Take the subscriptions away."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)

    def _listen(self) -> list[Subscription]:
        create, info = self._node.create_subscription, self._controller.info
        return [  # of what waits, the executor takes the first first: arm, wrist, frame
            create(PoseStamped, 'ee_pose', self._on_ee_pose, qos_profile_sensor_data),
            *([create(JointState, 'joint_states', self._on_joint_states, qos_profile_sensor_data)]
              if info.reads_state else []),
            *([self._listen_to_camera('wrist_image', self._controller.push_wrist_frame,
                                      self._reporter.wrist)] if info.reads_wrist else []),
            self._listen_to_camera('image', self._controller.push_frame, self._reporter.camera)]

    def _listen_to_camera(self, topic: str, push: Callable[[Frame], PushResult],
                          report: CameraReport) -> Subscription:
        message_type, name, convert = conversions.camera_topic(
            self._node, topic, self._config.camera.transport)
        return self._node.create_subscription(
            message_type, name,
            functools.partial(self._on_image, topic, convert, push, report), _CAMERA)

    def _on_image(self, topic: str, convert: Callable[[Any, str], Frame],
                  push: Callable[[Frame], PushResult], report: CameraReport,
                  message: Image | CompressedImage) -> None:
        try:
            frame = convert(message, self._config.camera.crop)
        except FrameError as error:
            self._judge_image(topic, report, str(error))
            return
        report.frames.add()
        self._judge_image(topic, report, self._why_dropped(push(frame)))
        self._on_input()

    def _why_dropped(self, result: PushResult) -> str:
        """Say why a frame was dropped and what to do; empty if all is well."""
        if result is PushResult.DUPLICATE and self._config.lockstep:
            return ''  # the simulator asks again
        if result not in _AGAINST_DROPPED:
            return ''
        return f'{result.value.removeprefix("dropped: ")}; {_AGAINST_DROPPED[result]}'

    def _judge_image(self, topic: str, report: CameraReport, refusal: str) -> None:
        """Remember why the last image was refused, empty if it was not, for reports; log it."""
        report.refusal = refusal
        if refusal:
            self._node.get_logger().error(f'{topic} refused: {refusal}',
                                          throttle_duration_sec=_LOG_PERIOD)

    def _on_ee_pose(self, message: PoseStamped) -> None:
        controller = self._controller
        if controller.info.reads_state or controller.settings.limits.has_workspace:
            self._take_state('ee_pose', lambda: controller.push_ee_pose(
                conversions.to_ns(message.header.stamp),
                *conversions.message_to_pose(message, self._config.base_frame)))

    def _on_joint_states(self, message: JointState) -> None:
        joints = self._config.gripper_joints
        if self._heard_gripper and not set(joints) & set(message.name):
            return  # arm and gripper may share the topic, each with messages of its own
        self._heard_gripper |= self._take_state(
            'joint_states', lambda: self._controller.push_fingers(
                conversions.to_ns(message.header.stamp),
                conversions.message_to_fingers(message, joints)))

    def _take_state(self, topic: str, push: Callable[[], None]) -> bool:
        """Take a part of the arm's state, or say why not; in lockstep a frame may wait for it."""
        try:
            push()
        except StateError as error:
            self._reporter.state_errors[topic] = str(error)
            self._node.get_logger().error(f'state of the arm refused: {error}',
                                          throttle_duration_sec=_LOG_PERIOD)
            return False
        self._reporter.state_errors.pop(topic, None)
        self._on_input()
        return True
