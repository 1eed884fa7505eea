# SPDX-License-Identifier: Apache-2.0
"""The wrist camera, from its topic to a policy that reads it; without it the robot holds."""

from diagnostic_msgs.msg import DiagnosticStatus
import numpy as np
from policy_client import noise, picture
import pytest
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, Image
from state_policies import attentive_policy

from worldvla_ros.msg import DeltaAction, PolicyStatus
from worldvla_ros.training.run_folder import save_pretrained


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp('tiny')
    save_pretrained(attentive_policy(reads_state=False, reads_wrist=True), folder)
    return str(folder)


@pytest.fixture
def start(start_policy, checkpoint):
    """Start a node with a policy that reads the wrist camera."""
    return lambda **values: start_policy(backend='inproc', checkpoint=checkpoint,
                                         worker__threads=1, **values)


def shoot_both(client, wrist_image=lambda number: noise(-number % 1000)):
    """Let both cameras run; the picture of the wrist may be another."""
    wrist = client.node.create_publisher(Image, 'wrist_image', qos_profile_sensor_data)

    def shoot(number):
        message = picture(client, noise(number))
        other = picture(client, wrist_image(number))
        other.header.stamp = message.header.stamp
        wrist.publish(other)
        return message
    client.shoot = shoot


def values(part):
    return {value.key: value.value for value in part.values}


def next_diagnostic(client, level):
    def find(report):
        return [part for part in report.status
                if part.name == 'worldvla_policy: wrist camera' and part.level == level]
    return find(client.next(client.diagnostics, find))[0]


def test_without_the_wrist_camera_it_holds_and_says_which_topic_is_missing(start, client):
    start()
    client.camera_on()
    client.instruct()
    client.next_halt(DeltaAction.REASON_NO_WRIST_FRAME)
    status = client.next_status(lambda status: status.state == PolicyStatus.STATE_HOLDING)
    assert 'wrist_image topic' in status.halt_text and not client.chunks
    missing = next_diagnostic(client, DiagnosticStatus.ERROR)
    assert 'wrist_image' in missing.message and values(missing)['age_s'] == '-1.000'
    shoot_both(client)
    client.next_motion()
    seen = next_diagnostic(client, DiagnosticStatus.OK)
    assert 0 <= float(values(seen)['age_s']) < 0.5
    client.next_status(lambda status: status.state == PolicyStatus.STATE_RUNNING)
    rate = {value.key: value.value
            for value in next_diagnostic(client, DiagnosticStatus.OK).values}['rate_hz']
    assert float(rate) > 5
    client.camera_on()  # that of the wrist falls silent
    client.next_halt(DeltaAction.REASON_NO_WRIST_FRAME)


@pytest.mark.parametrize('broken, complaint', [
    (lambda number: np.zeros((64, 64, 3), np.uint8), 'every pixel is zero'),
    (lambda number: noise(number, (64, 48, 3)), 'not square')])
def test_a_wrist_picture_that_cannot_be_used_is_refused_with_the_reason(
        start, client, capfd, broken, complaint):
    start(camera__crop='none')
    shoot_both(client, broken)
    client.instruct()
    status = client.next_status(lambda status: complaint in status.halt_text)
    assert status.halt_reason == DeltaAction.REASON_NO_WRIST_FRAME and not client.chunks
    assert 'wrist_image refused' in capfd.readouterr().err


def test_a_policy_with_one_camera_does_not_listen_to_another(start_policy, client):
    start_policy()
    client.camera_on()
    client.instruct()
    client.next_motion()
    names = [topic for topic, _ in client.node.get_topic_names_and_types()]
    assert not [name for name in names if 'wrist_image' in name]
    report = client.next(client.diagnostics)
    assert not [part for part in report.status if 'wrist' in part.name]


def test_compressed_pictures_of_both_cameras_are_read(start, client):
    import cv2
    start(camera__transport='compressed')
    wrist = client.node.create_publisher(CompressedImage, 'wrist_image/compressed',
                                         qos_profile_sensor_data)

    def shoot(number):
        message, other = (CompressedImage(
            format='png', data=cv2.imencode('.png', noise(seed))[1].tobytes())
            for seed in (number, 1000 + number))
        message.header.stamp = other.header.stamp = client.now()
        wrist.publish(other)
        return message
    client.shoot = shoot
    client.instruct()
    client.next_motion()
