# SPDX-License-Identifier: Apache-2.0
"""The whole loop as processes: simulator, policy node, worker with a real model, one client."""

from geometry_msgs.msg import PoseStamped
import numpy as np
from processes import children_of, is_alive, largest_mapping
import pytest
import rclpy
from rclpy.utilities import get_rmw_implementation_identifier
from sensor_msgs.msg import Image, JointState
from state_policies import attentive_policy, state_checkpoint

from worldvla_ros.arm_state import arm_state
from worldvla_ros.datatypes import Frame, Observation
from worldvla_ros.graph import BRIDGE_NODE, POLICY_NODE, demo_graph
from worldvla_ros.msg import Episode
from worldvla_ros.nodes.conversions import image_to_frame, message_to_pose, to_ns
from worldvla_ros.nodes.process_group import ProcessGroup
from worldvla_ros.policy.policy import WorldVLAPolicy
from worldvla_ros.training.run_folder import save_pretrained
from worldvla_sim.ros.episode_client import EpisodeClient

STEPS = 40


class Played:
    """One episode as the client saw it."""

    def __init__(self, client, joints, poses, wrist):
        joints.clear()
        self.record = client.play('libero_object', 4, 2)
        self.arm = {stamp: (poses[stamp], joints[stamp][-2:]) for stamp in joints}
        self.joints = np.array([joints[stamp] for stamp in sorted(joints)])
        self.chunks = np.array([chunk.actions for chunk in self.record.chunks])
        self.frames = np.stack(self.record.ordered_frames)
        self.wrist = dict(wrist)


def play(log_folder, episodes, dtype='auto', **given):
    """Start all processes, play episodes, stop; what was seen, and which processes there were."""
    policy, bridge = demo_graph(given)
    policy.parameters['dtype'] = dtype
    bridge.parameters['max_steps'] = STEPS
    joints, poses, wrist = {}, {}, {}
    rclpy.init()
    try:
        with ProcessGroup([policy, bridge], log_folder) as processes:
            client = EpisodeClient(processes)
            client.create_subscription(JointState, 'joint_states', lambda message: joints.update(
                {to_ns(message.header.stamp): message.position}), 100)
            client.create_subscription(PoseStamped, 'ee_pose', lambda message: poses.update(
                {to_ns(message.header.stamp): message}), 100)
            client.create_subscription(
                Image, 'camera/wrist/image_raw', lambda message: wrist.update(
                    {to_ns(message.header.stamp): image_to_frame(message).image}), 100)
            client.wait_until_ready()
            played = [Played(client, joints, poses, wrist) for _ in range(episodes)]
            if get_rmw_implementation_identifier() == 'rmw_fastrtps_cpp':
                room = largest_mapping(processes.process_ids[BRIDGE_NODE], '/dev/shm/fastrtps_')
                assert room > 16_000_000, 'less is overwritten before a busy client has read it'
            pids = [*processes.process_ids.values()]
            pids += [child for pid in pids for child in children_of(pid)]
    finally:
        rclpy.try_shutdown()
    return played, pids


def assert_same(first, second):
    """Nothing that either shows or does may differ."""
    np.testing.assert_array_equal(first.joints, second.joints)
    np.testing.assert_array_equal(first.chunks, second.chunks)
    np.testing.assert_array_equal(first.frames, second.frames)


def test_an_episode_in_lockstep_through_all_processes_is_deterministic(domain_id, tmp_path):
    (first, second), pids = play(tmp_path, 2)
    final = first.record.final
    assert (final.state, final.step, final.success) == (Episode.STATE_TIMEOUT, STEPS, False)
    assert len(first.joints) == len(first.frames) == STEPS + 1
    assert first.record.commands >= STEPS
    assert len(first.chunks) >= STEPS / first.record.chunks[0].horizon
    assert np.ptp(first.joints, axis=0)[:7].min() > 1e-3, 'the arm moves'
    assert all(chunk.instruction == final.instruction for chunk in first.record.chunks)
    assert_same(first, second)
    assert len(pids) == 3, 'policy, its worker, bridge'
    assert not any(map(is_alive, pids))
    for name in (POLICY_NODE, BRIDGE_NODE):
        assert 'Traceback' not in (tmp_path / f'{name}.log').read_text()


def test_a_policy_that_reads_the_state_of_the_arm_gets_that_of_its_newest_frame(
        domain_id, tmp_path):
    checkpoint = str(state_checkpoint(tmp_path / 'tiny'))
    (played,), _ = play(tmp_path, 1, 'float32', checkpoint=checkpoint, image_size='64')
    policy = WorldVLAPolicy.from_pretrained(checkpoint, dtype='float32')
    record, states = played.record, []
    for chunk in record.chunks:
        stamps = [to_ns(stamp) for stamp in chunk.frame_stamps]
        pose, fingers = played.arm[stamps[-1]]
        states.append(arm_state(*message_to_pose(pose, 'panda_link0'), fingers))
        expected = policy.predict_chunk(Observation(
            tuple(Frame(record.frames[stamp], stamp) for stamp in stamps), record.instruction,
            states[-1]))
        assert list(chunk.token_ids) == expected.token_ids.reshape(-1).tolist()
    assert len(states) == STEPS / policy.horizon, 'none was void because its state came later'
    assert np.ptp(states, axis=0)[:3].max() > 0.01, 'the arm moves'


def test_a_policy_that_reads_the_wrist_camera_gets_its_picture_of_each_frame(domain_id, tmp_path):
    pretrained = attentive_policy(reads_state=False, reads_wrist=True)
    save_pretrained(pretrained, tmp_path / 'tiny')
    checkpoint = str(tmp_path / 'tiny')
    (played,), _ = play(tmp_path, 1, 'float32', checkpoint=checkpoint)
    policy = WorldVLAPolicy.from_pretrained(checkpoint, dtype='float32')
    record = played.record
    for chunk in record.chunks:
        frames = tuple(Frame(record.frames[stamp], stamp, played.wrist[stamp])
                       for stamp in map(to_ns, chunk.frame_stamps))
        expected = policy.predict_chunk(Observation(frames, record.instruction))
        assert list(chunk.token_ids) == expected.token_ids.reshape(-1).tolist()
    assert len(record.chunks) == STEPS / policy.horizon, 'none was void for want of a picture'
    assert [len(chunk.frame_stamps) for chunk in record.chunks[:2]] == [1, 2]
    assert np.std([picture.mean() for picture in played.wrist.values()]) > 0, 'the arm moves'


@pytest.mark.slow
def test_other_processes_play_the_same_episode(domain_id, tmp_path):
    (first,), _ = play(tmp_path, 1)
    (second,), _ = play(tmp_path, 1)
    assert_same(first, second)
