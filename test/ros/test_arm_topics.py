# SPDX-License-Identifier: Apache-2.0
"""The state of the arm, from its topics to a policy that reads it; without it the robot holds."""

from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseStamped
import numpy as np
from policy_client import TASK, is_zero, noise, picture
import pytest
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import JointState
from state_policies import state_checkpoint
from std_msgs.msg import Header

from worldvla_ros.msg import PolicyStatus
from worldvla_ros.nodes.conversions import to_ns
from worldvla_ros.safety.limits import Reason

FINGERS = ('panda_finger_joint1', 'panda_finger_joint2')


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    return str(state_checkpoint(tmp_path_factory.mktemp('tiny')))


@pytest.fixture
def start(start_policy, checkpoint):
    """Start a node with a policy that reads the state."""
    return lambda **values: start_policy(backend='inproc', checkpoint=checkpoint,
                                         worker__threads=1, **values)


class Arm:
    """Publishes the state of an arm that points down, or what a broken driver makes of it."""

    def __init__(self, client):
        node = client.node
        self.poses = client.poses
        self.joints = node.create_publisher(JointState, 'joint_states', qos_profile_sensor_data)

    def pose(self, stamp, height=0.2, frame_id='panda_link0', orientation=(1.0, 0.0, 0.0, 0.0)):
        message = PoseStamped(header=Header(stamp=stamp, frame_id=frame_id))
        message.pose.position.z = height
        turn = message.pose.orientation
        turn.x, turn.y, turn.z, turn.w = orientation
        self.poses.publish(message)

    def fingers(self, stamp, names=FINGERS, position=(0.04, -0.04)):
        self.joints.publish(JointState(header=Header(stamp=stamp), name=['panda_joint1', *names],
                                       position=[0.5, *position]))

    def wait_until_heard(self, client):
        client.wait_for(lambda: self.poses.get_subscription_count()
                        and self.joints.get_subscription_count())


@pytest.fixture
def arm(client):
    return Arm(client)


def shoot_with(client, arm, pose=None, fingers=None):
    """Let camera and arm run; what is given differs from a healthy arm."""
    def shoot(number):
        message = picture(client, noise(number))
        arm.pose(message.header.stamp, **(pose or {}))
        arm.fingers(message.header.stamp, **(fingers or {}))
        return message
    client.shoot = shoot


def test_without_its_arm_it_holds_and_says_what_to_publish(start, client, arm):
    start()
    client.camera_on()
    client.instruct()
    client.next_halt(int(Reason.NO_STATE))
    status = client.next_status(lambda status: status.state == PolicyStatus.STATE_HOLDING)
    assert 'publish ee_pose and joint_states' in status.halt_text
    report = client.next(client.diagnostics, lambda report: any(
        part.name == 'worldvla_policy: arm' and part.level != b'\x00' for part in report.status))
    assert report.status and not client.chunks
    shoot_with(client, arm)
    client.next_motion()
    client.next_status(lambda status: status.state == PolicyStatus.STATE_RUNNING)
    client.camera_on()  # the arm falls silent
    client.next_halt(int(Reason.NO_STATE))


def test_the_arm_is_diagnosed_before_anybody_gives_an_instruction(start, client, arm):
    """Pins a bug: "no instruction" is the halt then, so the arm was "ok" without a message."""
    def next_arm(level):
        def find(report):
            return [part for part in report.status
                    if part.name == 'worldvla_policy: arm' and part.level == level]
        return find(client.next(client.diagnostics, find))[0]
    start()
    assert 'see the camera' in next_arm(DiagnosticStatus.WARN).message
    client.camera_on()
    assert 'publish ee_pose and joint_states' in next_arm(DiagnosticStatus.ERROR).message
    shoot_with(client, arm)
    assert next_arm(DiagnosticStatus.OK).message == 'ok'


@pytest.mark.parametrize('broken, complaint', [
    ({'fingers': {'names': ('left', 'right')}}, 'has panda_joint1, left, right; set gripper_'),
    ({'fingers': {'position': (np.nan, 0.0)}}, 'must be finite'),
    ({'pose': {'orientation': (0.0, 0.0, 0.0, 0.0)}}, 'length 1'),
    ({'pose': {'frame_id': 'world'}}, "'world'")])
def test_a_state_that_cannot_be_used_is_refused_with_the_reason_and_the_node_lives_on(
        start, client, arm, capfd, broken, complaint):
    start()
    shoot_with(client, arm, **broken)
    client.instruct()
    status = client.next_status(lambda status: complaint in status.halt_text)
    assert status.halt_reason == int(Reason.NO_STATE)
    assert 'state of the arm refused' in capfd.readouterr().err and not client.chunks
    shoot_with(client, arm)
    client.next_motion()
    client.next_status(lambda status: not status.halt_text)


def test_arm_and_gripper_may_share_the_topic_with_messages_of_their_own(
        start, client, arm, capfd):
    start(gripper_joints=['left', 'right'])
    arm.wait_until_heard(client)

    def shoot(number):
        message = picture(client, noise(number))
        arm.pose(message.header.stamp)
        arm.fingers(message.header.stamp, names=('left', 'right'))
        arm.fingers(message.header.stamp, names=(), position=())
        return message
    client.shoot = shoot
    client.instruct()
    client.next_motion()
    capfd.readouterr()
    for _ in range(3):
        client.next_motion()
    assert 'refused' not in capfd.readouterr().err


def test_lockstep_answers_each_frame_once_and_by_its_state_although_that_comes_later(
        start, client, arm):
    start(control__mode='lockstep', obs__max_age=10.0)
    arm.wait_until_heard(client)
    client.instruct()
    client.wait_for(lambda: any(one.data == TASK for one in client.followed))
    token_ids = []
    for episode, height in enumerate((0.2, 0.9, 0.2)):
        for step in range(5):
            image = picture(client, noise(1))  # of a robot that stands still, in a simulator
            stamp, seen = image.header.stamp, len(client.statuses)
            client.images.publish(image)
            client.wait_for(lambda seen=seen: len(client.statuses) > seen + 2)
            arm.pose(stamp, height)
            arm.fingers(stamp)
            answer = client.wait_for(lambda stamp=stamp: [
                one for one in client.actions
                if one.chunk_sequence and one.header.stamp == stamp])
            arm.fingers(stamp)
            assert [(one.chunk_sequence, one.chunk_step) for one in answer] == [
                (episode + 1, step)]
        token_ids.append(list(client.chunks[-1].token_ids))
        assert client.chunks[-1].sequence == episode + 1
    moved = [one for one in client.actions if not is_zero(one)]
    stamps = [to_ns(one.header.stamp) for one in moved]
    assert len(stamps) == len(set(stamps)) <= 15
    assert token_ids[0] != token_ids[1]
