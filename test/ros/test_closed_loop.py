# SPDX-License-Identifier: Apache-2.0
"""The whole loop as processes: simulator, policy node, worker with a real model, one client."""

import numpy as np
from processes import children_of, is_alive
import pytest
import rclpy
from sensor_msgs.msg import JointState

from worldvla_ros.graph import BRIDGE_NODE, POLICY_NODE, demo_graph
from worldvla_ros.msg import Episode
from worldvla_ros.nodes.conversions import to_ns
from worldvla_ros.nodes.process_group import ProcessGroup
from worldvla_sim.ros.episode_client import EpisodeClient

STEPS = 40


class Played:
    """One episode as the client saw it."""

    def __init__(self, client, joints):
        joints.clear()
        self.record = client.play('libero_object', 4, 2)
        self.joints = np.array([joints[stamp] for stamp in sorted(joints)])
        self.chunks = np.array([chunk.actions for chunk in self.record.chunks])
        self.frames = np.stack(self.record.ordered_frames)


def play(log_folder, episodes):
    """Start all processes, play episodes, stop; what was seen, and which processes there were."""
    policy, bridge = demo_graph({})
    bridge.parameters['max_steps'] = STEPS
    joints = {}
    rclpy.init()
    try:
        with ProcessGroup([policy, bridge], log_folder) as processes:
            client = EpisodeClient(processes)
            client.create_subscription(JointState, 'joint_states', lambda message: joints.update(
                {to_ns(message.header.stamp): message.position}), 100)
            client.wait_until_ready()
            played = [Played(client, joints) for _ in range(episodes)]
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


@pytest.mark.slow
def test_other_processes_play_the_same_episode(domain_id, tmp_path):
    (first,), _ = play(tmp_path, 1)
    (second,), _ = play(tmp_path, 1)
    assert_same(first, second)
