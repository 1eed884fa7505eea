# SPDX-License-Identifier: Apache-2.0
"""Messages become data types and back: by encoding, never guessed, exact and cheap."""

from array import array
import importlib.util
import math

from builtin_interfaces.msg import Time
import cv2
from geometry_msgs.msg import PoseStamped
from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest
import rclpy
from rclpy.serialization import deserialize_message, serialize_message
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Header

from worldvla_ros.arm_state import arm_state
from worldvla_ros.control.controller import ChunkArrival, Outgoing
from worldvla_ros.datatypes import ActionChunk, Frame, LatencySplit
from worldvla_ros.errors import FrameError, StateError
from worldvla_ros.msg import DeltaAction
from worldvla_ros.nodes import conversions
from worldvla_ros.nodes.parameters import PolicyParameters, ServoParameters
from worldvla_ros.policy.chunk_schedule import Arrival, ArrivalOutcome, ScheduledAction
from worldvla_ros.safety.command import Command
from worldvla_ros.safety.limits import Reason, Verdict

HEADER = Header(stamp=Time(sec=12, nanosec=34), frame_id='panda_link0')
STAMP_NS = 12_000_000_034
ORDER = {'rgb8': 'rgb', 'bgr8': 'bgr', 'rgba8': 'rgba', 'bgra8': 'bgra', 'mono8': 'g'}

any_encoding = pytest.mark.parametrize('encoding', ORDER)
finite = st.floats(allow_nan=False, allow_infinity=False)


def picture(height=6, width=6):
    """(height, width, 3) RGB without any symmetry."""
    return np.random.default_rng(1).integers(1, 255, (height, width, 3), np.uint8)


def encoded(rgb, encoding, padding=0):
    """Write an RGB picture in another encoding, with rows padded by some bytes."""
    planes = {'r': rgb[..., 0], 'g': rgb[..., 1], 'b': rgb[..., 2],
              'a': np.full(rgb.shape[:2], 77, np.uint8)}
    pixels = np.stack([planes[name] for name in ORDER[encoding]], axis=-1)
    height, width, channels = pixels.shape
    rows = np.full((height, width * channels + padding), 99, np.uint8)
    rows[:, :width * channels] = pixels.reshape(height, -1)
    return Image(header=HEADER, height=height, width=width, encoding=encoding,
                 step=rows.shape[1], data=array('B', rows.tobytes()))


def expected(rgb, encoding):
    return np.repeat(rgb[..., 1:2], 3, axis=2) if encoding == 'mono8' else rgb


# --- images -----------------------------------------------------------------------------------


@any_encoding
@pytest.mark.parametrize('padding', [0, 1, 10])
def test_every_encoding_gives_the_same_rgb_frame(encoding, padding):
    frame = conversions.image_to_frame(encoded(picture(), encoding, padding))
    np.testing.assert_array_equal(frame.image, expected(picture(), encoding))
    assert frame.stamp_ns == STAMP_NS


@any_encoding
def test_the_pixels_are_not_copied(encoding):
    message = encoded(picture(), encoding, padding=3)
    frame = conversions.image_to_frame(message)
    assert np.shares_memory(frame.image, np.frombuffer(message.data, np.uint8))


@any_encoding
def test_an_image_that_came_over_the_wire_is_read_as_well(encoding):
    message = deserialize_message(serialize_message(encoded(picture(), encoding, 2)), Image)
    frame = conversions.image_to_frame(message)
    np.testing.assert_array_equal(frame.image, expected(picture(), encoding))


@any_encoding
@pytest.mark.parametrize('height, width, rows, columns', [
    (4, 9, slice(0, 4), slice(2, 6)), (9, 4, slice(2, 6), slice(0, 4)),
    (5, 6, slice(0, 5), slice(0, 5))])
def test_an_image_that_is_not_square_is_cropped_in_the_middle(
        encoding, height, width, rows, columns):
    rgb = picture(height, width)
    frame = conversions.image_to_frame(encoded(rgb, encoding, 2))
    np.testing.assert_array_equal(frame.image, expected(rgb, encoding)[rows, columns])


def test_an_image_that_is_not_square_is_refused_where_cropping_is_off():
    with pytest.raises(FrameError, match=r'9 x 4 px is not square.*camera\.crop'):
        conversions.image_to_frame(encoded(picture(4, 9), 'rgb8'), crop='none')
    square = conversions.image_to_frame(encoded(picture(), 'rgb8'), crop='none')
    assert square.image.shape == (6, 6, 3)


@pytest.mark.parametrize('change, words', [
    ({'step': 17}, 'rows of 18 bytes, got step 17'),
    ({'step': 19}, r'needs 114 bytes, got 108'),
    ({'data': array('B', bytes(107))}, 'needs 108 bytes, got 107'),
    ({'data': array('B', bytes(109))}, 'needs 108 bytes, got 109'),
    ({'data': array('B')}, 'needs 108 bytes, got 0'),
    ({'width': 0}, '0 x 6 px'), ({'height': 0}, '6 x 0 px'),
    ({'height': 0, 'width': 0, 'step': 0, 'data': array('B')}, '0 x 0 px'),
    ({'encoding': 'rgba8'}, 'rows of 24 bytes, got step 18'),
])
def test_an_image_whose_sizes_contradict_each_other_is_refused(change, words):
    message = encoded(picture(), 'rgb8')
    for name, value in change.items():
        setattr(message, name, value)
    with pytest.raises(FrameError, match=words):
        conversions.image_to_frame(message)


@pytest.mark.skipif(importlib.util.find_spec('cv_bridge') is not None, reason='has cv_bridge')
@pytest.mark.parametrize('encoding', ['yuv422', '16UC1', '', 'RGB8', 'bayer_rggb8'])
def test_another_encoding_is_refused_by_name_with_what_is_understood(encoding):
    message = encoded(picture(), 'rgb8')
    message.encoding = encoding
    with pytest.raises(FrameError, match=f'{encoding!r}.*cv_bridge.*rgb8, bgr8, rgba8'):
        conversions.image_to_frame(message)


@pytest.mark.skipif(importlib.util.find_spec('cv_bridge') is None, reason='needs cv_bridge')
def test_another_encoding_is_converted_by_cv_bridge():
    message = Image(header=HEADER, height=2, width=2, encoding='8UC3', step=6,
                    data=array('B', bytes(range(12))))
    assert conversions.image_to_frame(message).image.shape == (2, 2, 3)


def test_compressed_pictures_come_beside_the_raw_ones_wherever_those_are(context):
    """Pins a bug: a camera that was remapped was heard on a topic that nobody published."""
    node = rclpy.create_node('node', context=context, start_parameter_services=False, cli_args=[
        '--ros-args', '-r', 'image:=/camera/color/image_raw'])
    names = [conversions.camera_topic(node, 'image', transport)[1]
             for transport in ('raw', 'compressed')]
    assert names == ['image', '/camera/color/image_raw/compressed']
    node.destroy_node()


@pytest.mark.parametrize('suffix, tolerance', [('.png', 0), ('.jpg', 12)])
def test_a_compressed_image_is_decoded_to_rgb(suffix, tolerance):
    rgb = np.zeros((16, 16, 3), np.uint8)
    rgb[...] = (200, 100, 20)  # plain, so that jpeg keeps it
    _, data = cv2.imencode(suffix, rgb[..., ::-1])
    frame = conversions.compressed_to_frame(CompressedImage(
        header=HEADER, format=f'rgb8; {suffix[1:]} compressed bgr8', data=array('B', bytes(data))))
    assert np.abs(frame.image.astype(int) - rgb).max() <= tolerance
    assert frame.stamp_ns == STAMP_NS


def test_a_compressed_image_is_cropped_or_refused_like_any_other():
    _, data = cv2.imencode('.png', picture(4, 9)[..., ::-1])
    message = CompressedImage(header=HEADER, format='png', data=array('B', bytes(data)))
    np.testing.assert_array_equal(conversions.compressed_to_frame(message).image,
                                  picture(4, 9)[:, 2:6])
    with pytest.raises(FrameError, match='not square'):
        conversions.compressed_to_frame(message, crop='none')


@pytest.mark.parametrize('data', [b'', b'not a picture', bytes(1000)])
def test_a_compressed_image_that_is_corrupt_is_refused(data):
    with pytest.raises(FrameError, match=rf"'png' and {len(data)} bytes cannot be decoded"):
        conversions.compressed_to_frame(
            CompressedImage(header=HEADER, format='png', data=array('B', data)))


def test_a_jpeg_that_says_it_is_huge_is_refused():
    """Pins a bug: OpenCV raises instead of returning nothing, which ended the node."""
    data = bytearray(cv2.imencode('.jpg', picture(16, 16))[1].tobytes())
    frame_header = data.index(b'\xff\xc0')  # marker, length (2), bits (1), height (2), width (2)
    data[frame_header + 5:frame_header + 9] = 2 * (65_500).to_bytes(2, 'big')
    with pytest.raises(cv2.error, match='PIXELS'):
        cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    with pytest.raises(FrameError, match='cannot be decoded'):
        conversions.compressed_to_frame(
            CompressedImage(header=HEADER, format='jpeg', data=array('B', data)))


@pytest.mark.parametrize('image', [picture(), picture()[..., ::-1], picture()[::-1]],
                         ids=['plain', 'bgr view', 'flipped view'])
def test_a_frame_survives_the_way_to_a_message_and_back(image):
    message = conversions.frame_to_image(Frame(image, STAMP_NS), 'camera')
    assert (message.encoding, message.step, message.header.frame_id) == ('rgb8', 18, 'camera')
    frame = conversions.image_to_frame(
        deserialize_message(serialize_message(message), Image))
    np.testing.assert_array_equal(frame.image, image)
    assert frame.stamp_ns == STAMP_NS


@given(st.integers(-2**31 * 10**9, 2**31 * 10**9 - 1))
def test_a_stamp_survives_the_way_to_a_message_and_back(stamp_ns):
    stamp = conversions.to_time(stamp_ns)
    assert 0 <= stamp.nanosec < 10**9
    assert conversions.to_ns(stamp) == stamp_ns


# --- the arm ----------------------------------------------------------------------------------


def pose_message(position=(0.5, -0.1, 0.2), orientation=(1.0, 0.0, 0.0, 0.0), header=HEADER):
    message = PoseStamped(header=header)
    place, turn = message.pose.position, message.pose.orientation
    place.x, place.y, place.z = position
    turn.x, turn.y, turn.z, turn.w = orientation
    return message


def joints_message(header=HEADER, **positions):
    return JointState(header=header, name=list(positions), position=list(positions.values()))


def test_pose_and_joints_become_the_state_that_training_saw():
    turned = Rotation.from_rotvec([0, 0, 0.3]) * Rotation.from_rotvec([np.pi, 0, 0])
    place, rotation = conversions.message_to_pose(
        pose_message(orientation=turned.as_quat().tolist()), 'panda_link0')
    fingers = conversions.message_to_fingers(
        joints_message(right=-0.03, elbow=1.0, left=0.01), ('left', 'right'))
    np.testing.assert_array_equal(fingers, [0.01, -0.03])
    np.testing.assert_allclose(arm_state(place, rotation, fingers),
                               [0.5, -0.1, 0.2, 0, 0, 0.3, 0.04], atol=1e-12)


def test_a_quaternion_is_rounded_but_not_guessed():
    rounded = (0.7071, 0.7071, 0.0, 0.0)
    _, rotation = conversions.message_to_pose(pose_message(orientation=rounded), 'panda_link0')
    assert rotation.magnitude() == pytest.approx(np.pi)
    for orientation in ((0.0, 0.0, 0.0, 0.0), (1.0, 1.0, 0.0, 0.0), (0.5, 0.0, 0.0, 0.0)):
        with pytest.raises(StateError, match='length 1'):
            conversions.message_to_pose(pose_message(orientation=orientation), 'panda_link0')


@pytest.mark.parametrize('change, words', [
    ({'position': (math.nan, 0.0, 0.0)}, 'finite'),
    ({'position': (math.inf, 0.0, 0.0)}, 'finite'),
    ({'orientation': (1.0, 0.0, math.nan, 0.0)}, 'finite'),
    ({'header': Header(stamp=HEADER.stamp, frame_id='world')}, "'world'.*'panda_link0'.*base_"),
    ({'header': Header(stamp=HEADER.stamp)}, 'base_frame'),
    ({'header': Header(frame_id='panda_link0')}, 'no stamp')])
def test_a_pose_that_tells_no_state_is_refused(change, words):
    with pytest.raises(StateError, match=words):
        conversions.message_to_pose(pose_message(**change), 'panda_link0')


@pytest.mark.parametrize('message, words', [
    (joints_message(elbow=1.0, left=0.0), 'position of right; it has elbow, left; set gripper_'),
    (joints_message(), 'position of left, right; it has none'),
    (JointState(header=HEADER, name=['left', 'right'], position=[0.0]), 'position of right'),
    (joints_message(left=0.0, right=math.nan), 'finite, got'),
    (joints_message(left=1e308, right=1e308), 'finite, got'),
    (joints_message(Header(), left=0.0, right=0.0), 'no stamp')])
def test_joints_that_tell_no_state_are_refused(message, words):
    with pytest.raises(StateError, match=words):
        conversions.message_to_fingers(message, ('left', 'right'))


# --- commands and chunks ----------------------------------------------------------------------


def new_chunk(horizon=3, with_tokens=True):
    rng = np.random.default_rng(2)
    rows = horizon if with_tokens else 0
    return ActionChunk(
        rng.uniform(-1, 1, (horizon, 7)).astype(np.float32),
        rng.integers(10_000, 20_000, (rows, 7)).astype(np.int32),
        rng.uniform(0, 5, (rows, 7)).astype(np.float32), 'pick up the milk',
        (STAMP_NS - 50_000_000, STAMP_NS), LatencySplit(0.125, 0.25, 0.5, 0.875))


@given(st.lists(finite, min_size=6, max_size=6), st.floats(-1, 1))
def test_a_command_survives_the_way_over_the_wire_exactly(motion, gripper):
    command = Command(np.array(motion[:3]), np.array(motion[3:]), gripper)
    message = conversions.outgoing_to_action(
        Outgoing(command, Verdict.PASS, Reason.NONE, None), HEADER)
    back = conversions.action_to_command(
        deserialize_message(serialize_message(message), DeltaAction))
    assert back.translation.tobytes() == command.translation.tobytes()
    assert back.rotation_vector.tobytes() == command.rotation_vector.tobytes()
    assert math.copysign(1, back.gripper) == math.copysign(1, gripper)
    assert back.gripper == gripper


def test_a_command_from_a_chunk_names_chunk_step_frame_and_instruction():
    chunk = new_chunk()
    message = conversions.outgoing_to_action(
        Outgoing(Command.hold(0.5), Verdict.LIMITED, Reason.RATE,
                 ScheduledAction(chunk.actions[2], 7, 2, chunk)), HEADER)
    assert (message.chunk_sequence, message.chunk_step) == (7, 2)
    assert conversions.to_ns(message.observation_stamp) == STAMP_NS
    assert message.instruction == 'pick up the milk' and message.header == HEADER
    assert (message.verdict, message.reason) == (
        DeltaAction.VERDICT_LIMITED, DeltaAction.REASON_RATE)


def test_a_command_from_no_chunk_names_none():
    message = conversions.outgoing_to_action(
        Outgoing(Command.hold(-1), Verdict.HOLD, Reason.ESTOP, None), HEADER)
    assert (message.chunk_sequence, message.instruction) == (0, '')
    assert message.observation_stamp == Time() and message.gripper == -1


def constants(prefix):
    return {name.removeprefix(prefix): getattr(DeltaAction, name)
            for name in dir(type(DeltaAction)) if name.startswith(prefix)}


@pytest.mark.parametrize('enumeration, prefix', [(Reason, 'REASON_'), (Verdict, 'VERDICT_')])
def test_the_constants_of_the_message_are_those_of_the_safety_stage(enumeration, prefix):
    assert constants(prefix) == {one.name: int(one) for one in enumeration}


@pytest.mark.parametrize('with_tokens', [True, False])
def test_a_chunk_message_holds_the_chunk_row_by_row(with_tokens):
    chunk = new_chunk(with_tokens=with_tokens)
    message = conversions.chunk_to_message(chunk, HEADER)
    message = deserialize_message(serialize_message(message), type(message))
    for name in ('actions', 'token_ids', 'entropy'):
        np.testing.assert_array_equal(
            np.array(getattr(message, name)).reshape(-1, 7), getattr(chunk, name))
    assert message.horizon == 3 and message.instruction == 'pick up the milk'
    assert [conversions.to_ns(one) for one in message.frame_stamps] == list(chunk.frame_stamps_ns)
    assert (message.latency_encode, message.latency_prefill, message.latency_decode,
            message.latency_total) == (0.125, 0.25, 0.5, 0.875)
    assert (message.sequence, message.dropped_steps) == (0, 0)


def test_a_chunk_that_entered_the_schedule_says_when_and_with_how_many_steps_dropped():
    arrival = ChunkArrival(new_chunk(), ArrivalOutcome(Arrival.ACCEPTED, 5, 2), 1.5)
    message = conversions.arrival_to_message(arrival, HEADER)
    assert (message.sequence, message.dropped_steps, message.latency_total) == (5, 2, 1.5)


@pytest.mark.parametrize('command_type, linear, angular', [
    ('speed_units', [0.05, -0.1, 0.25], [0.4, 0.0, -2.0]),
    ('unitless', [0.2, -0.4, 1.0], [0.2, 0.0, -1.0])])
def test_a_twist_is_in_the_units_that_servo_is_set_to(command_type, linear, angular):
    command = Command(np.array([0.01, -0.02, 0.05]), np.array([0.1, 0, -0.5]), 1)
    config = PolicyParameters(servo=ServoParameters(
        command_type=command_type, translation_gain=0.25, rotation_gain=0.2))
    twist = conversions.command_to_twist(command, HEADER, config)
    np.testing.assert_allclose(
        [twist.twist.linear.x, twist.twist.linear.y, twist.twist.linear.z], linear)
    np.testing.assert_allclose(
        [twist.twist.angular.x, twist.twist.angular.y, twist.twist.angular.z], angular)
    assert twist.header == HEADER
