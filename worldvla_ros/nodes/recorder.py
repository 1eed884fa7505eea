# SPDX-License-Identifier: Apache-2.0
"""Listen to a robot that somebody else moves, and keep what a demonstration is made of."""

from collections.abc import Callable
from dataclasses import dataclass, field
import threading
import time
from typing import Any

from geometry_msgs.msg import PoseStamped
import numpy as np
from numpy.typing import NDArray
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import JointState

from worldvla_ros.config import bounded, check
from worldvla_ros.datatypes import Frame
from worldvla_ros.errors import ConfigError, FrameError, RecordingError, StateError
from worldvla_ros.model.image_preprocessing import square_frame
from worldvla_ros.msg import DeltaAction
from worldvla_ros.nodes import conversions
from worldvla_ros.nodes.parameters import CameraParameters, declare, read
from worldvla_ros.recording.timeline import LONGEST_PAUSE, Pace, RecordedEpisode, Timeline
from worldvla_ros.safety.command import ActionScale

RECORDER_NODE = 'worldvla_recorder'
_SENSORS = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
_COMMANDS = QoSProfile(depth=100)  # reliable, as the policy node sends them
_LOG_PERIOD = 5.0  # [s] between two log lines of the same complaint
_SILENT = 1.0  # [s] after which a camera counts as not there
_LATE = 2.0  # [s] more than a command comes after pictures that are newer
_NS = 1e9

_Push = Callable[[Timeline], None]


@dataclass(frozen=True)
class RecorderControl:
    """When steps begin."""

    rate: float = bounded(
        20.0, unit='Hz', minimum=1.0, maximum=1000.0, read_only=True,
        doc='Control steps per second, whatever the rates of camera and commands are; that of the '
            'policy node later')


@dataclass(frozen=True)
class RecorderTolerances:
    """What belongs together in time."""

    max_age: float = bounded(
        0.1, unit='s', minimum=0.001, maximum=10.0, read_only=True,
        doc='How old the newest frame may be at a command; older ones spoil the demonstration')
    state_tolerance: float = bounded(
        0.05, unit='s', minimum=0.0, maximum=1.0, read_only=True,
        doc='How far ee_pose and joint_states may be in time from the frame of their step')
    wrist_tolerance: float = bounded(
        0.05, unit='s', minimum=0.0, maximum=1.0, read_only=True,
        doc='The same for the picture of the wrist camera')


@dataclass(frozen=True)
class RecorderParameters:
    """All parameters of the recorder; what the policy node has, too, has the same name there."""

    image_size: int = bounded(
        256, unit='px', minimum=0, maximum=4096, read_only=True,
        doc='Side of the frames that are kept, cropped and resized as the policy does it: that of '
            'the checkpoint to be trained; 0: as large as they come')
    wrist: bool = bounded(
        False, read_only=True, doc='Record wrist_image, too, for a policy that shall read it')
    base_frame: str = bounded(
        'panda_link0', read_only=True,
        doc='frame_id of ee_pose and of the commands, which may leave it empty')
    gripper_joints: tuple[str, ...] = bounded(
        ('panda_finger_joint1', 'panda_finger_joint2'), read_only=True,
        doc='Joints of the gripper in joint_states')
    control: RecorderControl = field(default_factory=RecorderControl)
    obs: RecorderTolerances = field(default_factory=RecorderTolerances)
    scale: ActionScale = field(default_factory=ActionScale)
    camera: CameraParameters = field(default_factory=CameraParameters)

    def __post_init__(self) -> None:
        """Refuse values outside the ranges, and a gripper without joints."""
        check(self)
        if not self.gripper_joints:
            raise ConfigError('gripper_joints must name at least one joint of joint_states')

    @property
    def pace(self) -> Pace:
        """What puts the topics in step."""
        return Pace(round(_NS / self.control.rate), round(self.obs.max_age * _NS),
                    round(self.obs.state_tolerance * _NS), round(self.obs.wrist_tolerance * _NS))


class Recorder(Node):
    """Keeps what comes between `begin` and `end`, which other threads may call.

    :param commands: topic of the DeltaAction messages that move the arm
    """

    def __init__(self, commands: str, **options: Any) -> None:
        super().__init__(RECORDER_NODE, **options)
        declare(self, RecorderParameters)
        self.config = read(self, RecorderParameters)
        self._lock = threading.Lock()
        self._timeline: Timeline | None = None
        self._newest: dict[str, tuple[float, _Push]] = {}  # when [s], monotonic, and what came
        self._sensors = ['ee_pose', 'joint_states', 'image']
        self._listen(PoseStamped, 'ee_pose', self._on_pose, _SENSORS)
        self._listen(JointState, 'joint_states', self._on_joints, _SENSORS)
        if self.config.wrist:
            self._sensors.append('wrist_image')
            self._listen_to_camera('wrist_image', Timeline.push_wrist_frame)
        self._listen_to_camera('image', Timeline.push_frame)
        self._listen(DeltaAction, commands, self._on_command, _COMMANDS)
        self._commands = self.resolve_topic_name(commands)

    def begin(self) -> list[str]:
        """Start a demonstration; return the topics of the arm that are silent.

        :raises RecordingError: no camera is heard, or not one node commands the arm.
        """
        if (found := self.count_publishers(self._commands)) != 1:
            raise RecordingError(
                f'expected one node that commands the arm on {self._commands}, found {found}; '
                + ('stop the others: the policy node is one, also while it is inactive' if found
                   else 'start your teleoperation, or name its topic with --commands'))
        with self._lock:
            now = time.monotonic()
            fresh = {topic: push for topic, (came, push) in self._newest.items()
                     if now - came < _SILENT}
            silent = [topic for topic in self._sensors if topic not in fresh]
            for topic in silent:
                if 'image' in topic:
                    raise RecordingError(f'no usable picture comes on {self._name(topic)}; is '
                                         'the camera running, and the topic remapped to it?')
            self._timeline = Timeline(self.config.pace)
            for topic in self._sensors:
                fresh.get(topic, lambda _: None)(self._timeline)  # what the first command rests on
            return [self._name(topic) for topic in silent]

    def end(self) -> RecordedEpisode:
        """End a demonstration and put it together.

        :raises RecordingError: it cannot be, see `Timeline.episode`.
        """
        with self._lock:
            timeline, self._timeline = self._timeline, None
        assert timeline is not None, 'begin comes before end'
        return timeline.episode()

    def throw_away(self) -> None:
        """End a demonstration without keeping anything."""
        with self._lock:
            self._timeline = None

    def _name(self, topic: str) -> str:
        if 'image' in topic:
            _, topic, _ = conversions.camera_topic(self, topic, self.config.camera.transport)
        name: str = self.resolve_topic_name(topic)
        return name

    def _listen(self, kind: type, topic: str, take: Callable[[Any], None], qos: QoSProfile
                ) -> None:
        def on_message(message: Any) -> None:
            try:
                take(message)
            except (FrameError, StateError) as error:
                self.get_logger().error(f'{topic} refused: {error}',
                                        throttle_duration_sec=_LOG_PERIOD)
        self.create_subscription(kind, topic, on_message, qos)

    def _listen_to_camera(self, topic: str, push: Callable[[Timeline, Frame], None]) -> None:
        kind, name, convert = conversions.camera_topic(self, topic, self.config.camera.transport)
        size = self.config.image_size

        def take(message: Any) -> None:
            stamp_ns = conversions.checked_stamp(topic, message.header)
            image = convert(message, self.config.camera.crop).image
            frame = Frame(_by_itself(square_frame(image, size) if size else image), stamp_ns)
            self._keep(topic, lambda timeline: self._keep_picture(timeline, push, frame))
        self._listen(kind, name, take, _SENSORS)

    def _keep(self, topic: str, push: _Push) -> None:
        with self._lock:
            self._newest[topic] = time.monotonic(), push
            if self._timeline is not None:
                push(self._timeline)

    def _keep_picture(self, timeline: Timeline, push: Callable[[Timeline, Frame], None],
                      frame: Frame) -> None:
        """Keep a picture that a command may refer to: who waits, for hours, fills no memory."""
        if not timeline.commands:
            timeline.forget_pictures_before(
                frame.stamp_ns - self.config.pace.max_age_ns - round(_LATE * _NS))
        elif time.monotonic() - self._newest['commands'][0] > LONGEST_PAUSE:
            return
        push(timeline, frame)

    def _on_pose(self, message: PoseStamped) -> None:
        place, turn = conversions.message_to_pose(message, self.config.base_frame)
        stamp = conversions.to_ns(message.header.stamp)
        self._keep('ee_pose', lambda timeline: timeline.push_pose(stamp, place, turn))

    def _on_joints(self, message: JointState) -> None:
        if 'joint_states' in self._newest and not (
                set(self.config.gripper_joints) & set(message.name)):
            return  # arm and gripper may share the topic, each with messages of its own
        fingers = conversions.message_to_fingers(message, self.config.gripper_joints)
        stamp = conversions.to_ns(message.header.stamp)
        self._keep('joint_states', lambda timeline: timeline.push_fingers(stamp, fingers))

    def _on_command(self, message: DeltaAction) -> None:
        command = conversions.action_to_command(message)
        if not command.is_finite:
            raise StateError('a command with a value that is no number')
        if message.header.frame_id not in ('', self.config.base_frame):
            raise StateError(f'a command is in frame {message.header.frame_id!r} and must be in '
                             f'that of the base, {self.config.base_frame!r}; turn its vectors, '
                             'or set base_frame')
        action = command.to_controller_input(self.config.scale)
        stamp = conversions.checked_stamp('a command', message.header)
        self._keep('commands', lambda timeline: timeline.push_command(stamp, action))


def _by_itself(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a picture that keeps no more in memory than itself; a crop keeps its message."""
    owner = image
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    return image.copy() if owner.nbytes > image.nbytes else image
