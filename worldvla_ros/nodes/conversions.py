# SPDX-License-Identifier: Apache-2.0
"""Messages to data types and back: images, stamps, the arm, commands, chunks.

Nothing else touches both.
"""

from array import array
from collections.abc import Callable, Sequence
import contextlib
import sys
from typing import Any

from builtin_interfaces.msg import Time
import cv2
from geometry_msgs.msg import PoseStamped, TwistStamped, Vector3
import numpy as np
from rclpy.node import Node
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Header

from worldvla_ros.control.controller import Outgoing
from worldvla_ros.control.planner import ChunkArrival
from worldvla_ros.datatypes import ActionChunk, Frame
from worldvla_ros.errors import FrameError, StateError
from worldvla_ros.msg import ActionChunk as ActionChunkMsg
from worldvla_ros.msg import DeltaAction
from worldvla_ros.nodes.parameters import PolicyParameters
from worldvla_ros.safety.command import Command

# Channels of a pixel of each encoding (sensor_msgs/image_encodings.hpp).
_CHANNELS = {'rgb8': 3, 'bgr8': 3, 'rgba8': 4, 'bgra8': 4, 'mono8': 1}
_BLUE_FIRST = ('bgr8', 'bgra8')
SUPPORTED_ENCODINGS = tuple(_CHANNELS)
_NS = 1_000_000_000
_FARTHEST = 1e6  # [m] beyond any finger; sums of such positions are finite, too
_NORM_TOLERANCE = 0.01  # of a quaternion; float32 and sensible rounding are far below it


def to_ns(stamp: Time) -> int:
    """Convert a stamp to nanoseconds."""
    return stamp.sec * _NS + stamp.nanosec


def to_time(stamp_ns: int) -> Time:
    """Convert nanoseconds to a stamp."""
    return Time(sec=stamp_ns // _NS, nanosec=stamp_ns % _NS)


def checked_stamp(topic: str, header: Header) -> int:
    """Return the stamp of a message [ns]. Raises StateError where there is none."""
    if (stamp_ns := to_ns(header.stamp)) == 0:
        raise StateError(f'{topic} has no stamp, and only a stamp tells which frame it belongs to')
    return stamp_ns


def image_to_frame(message: Image, crop: str = 'center') -> Frame:
    """
    View an image message as a frame; a copy is made only by cv_bridge.

    :param crop: 'center' cuts the largest centred square; 'none' refuses other shapes
    Raises FrameError for an encoding, size or length that does not fit.
    """
    channels = _CHANNELS.get(message.encoding)
    if channels is None:
        return _crop(_bridge(message), message.header, crop)
    row = message.width * channels
    if not message.height or not message.width or message.step < row:
        raise FrameError(f'an image of {message.width} x {message.height} px {message.encoding} '
                         f'needs rows of {row} bytes, got step {message.step}')
    if len(message.data) != message.height * message.step:
        raise FrameError(f'an image of {message.height} rows of {message.step} bytes needs '
                         f'{message.height * message.step} bytes, got {len(message.data)}')
    rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)
    pixels = rows[:, :row].reshape(message.height, message.width, channels)
    return _crop(_to_rgb(pixels, message.encoding), message.header, crop)


def compressed_to_frame(message: CompressedImage, crop: str = 'center') -> Frame:
    """Decode a compressed image message (jpeg, png, ...) into a frame. Raises FrameError."""
    decoded = None
    if len(message.data):
        with contextlib.suppress(cv2.error):  # raised for a size beyond its limits, for one
            decoded = cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_COLOR)
    if decoded is None:
        raise FrameError(f'a compressed image of format {message.format!r} and '
                         f'{len(message.data)} bytes cannot be decoded; expected jpeg or png')
    return _crop(decoded[..., ::-1], message.header, crop)


def camera_topic(node: Node, topic: str, transport: str
                 ) -> tuple[type, str, Callable[[Any, str], Frame]]:
    """
    Return message type, name and conversion to a frame of a camera's topic.

    Compressed pictures come beside the raw ones, so a topic that is remapped takes them along.

    :param transport: raw or compressed, see CameraParameters
    """
    if transport == 'raw':
        return Image, topic, image_to_frame
    return CompressedImage, f'{node.resolve_topic_name(topic)}/compressed', compressed_to_frame


def frame_to_image(frame: Frame, frame_id: str) -> Image:
    """Convert a frame to an rgb8 message; the inverse of `image_to_frame` for squares."""
    height, width, _ = frame.image.shape
    data = array('B')  # the message setter takes an array as it is, anything else item by item
    data.frombytes(np.ascontiguousarray(frame.image).data.cast('B'))
    return Image(header=Header(stamp=to_time(frame.stamp_ns), frame_id=frame_id), height=height,
                 width=width, encoding='rgb8', is_bigendian=int(sys.byteorder == 'big'),
                 step=3 * width, data=data)


def message_to_pose(message: PoseStamped, base_frame: str) -> tuple[np.ndarray, Rotation]:
    """
    Read position (3,) [m] and rotation of the end effector in the frame of the base.

    Raises StateError for another frame, no stamp, or values that are no pose.
    """
    checked_stamp('ee_pose', message.header)
    if message.header.frame_id != base_frame:
        raise StateError(f'ee_pose is in frame {message.header.frame_id!r} and must be in that of '
                         f'the base, {base_frame!r}; transform it, or set base_frame')
    position, turn = message.pose.position, message.pose.orientation
    place = np.array([position.x, position.y, position.z])
    quaternion = np.array([turn.x, turn.y, turn.z, turn.w])
    if not (np.isfinite(place).all() and np.isfinite(quaternion).all()):
        raise StateError(f'ee_pose must be finite, got position {place.tolist()}, orientation '
                         f'xyzw {quaternion.tolist()}')
    if abs(np.linalg.norm(quaternion) - 1.0) > _NORM_TOLERANCE:
        raise StateError(f'the orientation of ee_pose must be a quaternion of length 1, got xyzw '
                         f'{quaternion.tolist()}')
    return place, Rotation.from_quat(quaternion)


def message_to_fingers(message: JointState, names: Sequence[str]) -> np.ndarray:
    """
    Read the positions of the gripper's joints (n,) [m], in the order of their names.

    Raises StateError for a joint that is missing, no stamp, or a position that is no number.
    """
    checked_stamp('joint_states', message.header)
    positions = dict(zip(message.name, message.position, strict=False))
    missing = [name for name in names if name not in positions]
    if missing:
        raise StateError(f'joint_states has no position of {", ".join(missing)}; it has '
                         f'{", ".join(positions) or "none"}; set gripper_joints to the joints of '
                         f'your gripper')
    fingers = np.array([positions[name] for name in names])
    if not (np.abs(fingers) < _FARTHEST).all():
        raise StateError(f'the positions of {", ".join(names)} in joint_states must be finite, '
                         f'got {fingers.tolist()}')
    return fingers


def outgoing_to_action(outgoing: Outgoing, header: Header) -> DeltaAction:
    """Convert a command and where it came from."""
    message = command_to_action(outgoing.command, header)
    message.verdict, message.reason = int(outgoing.verdict), int(outgoing.reason)
    if outgoing.action is not None:
        chunk = outgoing.action.chunk
        message.chunk_sequence = outgoing.action.chunk_sequence
        message.chunk_step = outgoing.action.step
        message.observation_stamp = to_time(chunk.frame_stamps_ns[-1])
        message.instruction = chunk.instruction
    return message


def command_to_action(command: Command, header: Header) -> DeltaAction:
    """Convert a command that comes from no chunk, as other commanders than the policy send it."""
    return DeltaAction(
        header=header, translation=_vector(command.translation),
        rotation_vector=_vector(command.rotation_vector), gripper=command.gripper)


def action_to_command(message: DeltaAction) -> Command:
    """Read the command of a message; the inverse of `command_to_action`."""
    return Command(_array(message.translation), _array(message.rotation_vector), message.gripper)


def command_to_twist(command: Command, header: Header, config: PolicyParameters) -> TwistStamped:
    """Convert a goal offset to MoveIt Servo's input: the speed that it causes, or unitless."""
    message = TwistStamped(header=header)
    servo, rate = config.servo, config.control.rate
    if servo.command_type == 'unitless':
        action = command.to_controller_input(config.scale)
        linear, angular = action[:3], action[3:6]
    else:
        linear = command.translation * servo.translation_gain * rate
        angular = command.rotation_vector * servo.rotation_gain * rate
    message.twist.linear = _vector(linear)
    message.twist.angular = _vector(angular)
    return message


def arrival_to_message(arrival: ChunkArrival, header: Header) -> ActionChunkMsg:
    """Convert a chunk that entered the schedule."""
    message = chunk_to_message(arrival.chunk, header)
    message.sequence = arrival.outcome.chunk_sequence
    message.latency_total = arrival.latency
    message.dropped_steps = arrival.outcome.skipped
    return message


def chunk_to_message(chunk: ActionChunk, header: Header) -> ActionChunkMsg:
    """Convert a chunk."""
    return ActionChunkMsg(
        header=header, instruction=chunk.instruction,
        frame_stamps=[to_time(stamp) for stamp in chunk.frame_stamps_ns], horizon=chunk.horizon,
        actions=array('f', chunk.actions.astype(np.float32).tobytes()),
        token_ids=array('i', chunk.token_ids.astype(np.int32).tobytes()),
        entropy=array('f', chunk.entropy.astype(np.float32).tobytes()),
        latency_encode=chunk.latency.encode, latency_prefill=chunk.latency.prefill,
        latency_decode=chunk.latency.decode, latency_total=chunk.latency.total)


def _to_rgb(pixels: np.ndarray, encoding: str) -> np.ndarray:
    if encoding == 'mono8':
        return np.broadcast_to(pixels, (*pixels.shape[:2], 3))
    return pixels[..., 2::-1] if encoding in _BLUE_FIRST else pixels[..., :3]


def _bridge(message: Image) -> np.ndarray:
    """Convert another encoding with cv_bridge, where it is installed."""
    try:
        from cv_bridge import CvBridge, CvBridgeError
    except ImportError:
        raise FrameError(
            f'image encoding {message.encoding!r} needs cv_bridge, which is not installed here; '
            f'without it: {", ".join(SUPPORTED_ENCODINGS)}, or a compressed image') from None
    try:
        return np.asarray(CvBridge().imgmsg_to_cv2(message, desired_encoding='rgb8'))
    except (CvBridgeError, cv2.error, ValueError, TypeError) as error:
        raise FrameError(f'cv_bridge cannot convert image encoding {message.encoding!r} to rgb8: '
                         f'{error}') from None


def _crop(image: np.ndarray, header: Header, crop: str) -> Frame:
    height, width, _ = image.shape
    if height != width:
        if crop != 'center':
            raise FrameError(f'an image of {width} x {height} px is not square, and camera.crop '
                             f'is {crop!r}; set it to center, or crop the image before')
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        image = image[top:top + side, left:left + side]
    return Frame(image, to_ns(header.stamp))


def _vector(values: np.ndarray) -> Vector3:
    x, y, z = map(float, values)
    return Vector3(x=x, y=y, z=z)


def _array(vector: Vector3) -> np.ndarray:
    return np.array([vector.x, vector.y, vector.z])
