# SPDX-License-Identifier: Apache-2.0
"""The whole graph as processes: camera, tokens, chunk, safety, simulator, and the same again."""

import os
from pathlib import Path
import time

import numpy as np
import pytest
from rclpy.action import ActionClient
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import JointState

from worldvla_ros.action import RunTask
from worldvla_ros.graph import BRIDGE_NODE, POLICY_NODE, demo_graph
from worldvla_ros.msg import DeltaAction, Episode
from worldvla_ros.nodes.conversions import to_ns
from worldvla_ros.nodes.process_group import ProcessGroup
from worldvla_ros.srv import ResetEpisode

STEPS = 40
TIMEOUT = 120.0


class Client(Node):
    """Plays an episode as the demo does, and keeps what it hears."""

    def __init__(self, context):
        super().__init__('client', context=context)
        latched = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.episodes, self.joints, self.actions = [], {}, []
        self.create_subscription(Episode, 'episode', self.episodes.append, latched)
        self.create_subscription(JointState, 'joint_states', self._on_joints, 100)
        self.create_subscription(DeltaAction, f'/{POLICY_NODE}/action', self.actions.append, 100)
        self.resets = self.create_client(ResetEpisode, f'/{BRIDGE_NODE}/reset')
        self.tasks = ActionClient(self, RunTask, f'/{POLICY_NODE}/run_task')

    def _on_joints(self, message):
        self.joints[to_ns(message.header.stamp)] = list(message.position)


def processes_of(folder):
    """Processes that write their log to a folder: the nodes and whatever they started."""
    found = []
    for entry in Path('/proc').iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                environment = (entry / 'environ').read_bytes()
            except OSError:
                continue
            if f'ROS_LOG_DIR={folder}'.encode() in environment:
                found.append(int(entry.name))
    return found


@pytest.fixture
def client(context, spin):
    return spin(Client(context))


def play(client, wait_for):
    """Play one episode; return its joint trajectory and the commands that came from chunks."""
    answer = client.resets.call_async(ResetEpisode.Request(suite='libero_object', task=0))
    wait_for(answer.done, TIMEOUT)
    started = answer.result()
    assert started.success, started.message
    client.actions.clear()
    goal = client.tasks.send_goal_async(RunTask.Goal(instruction=started.instruction))
    wait_for(goal.done, TIMEOUT)
    assert goal.result().accepted

    def ended():
        return [one for one in client.episodes if one.episode == started.episode
                and one.state != Episode.STATE_RUNNING]
    last = wait_for(ended, TIMEOUT)[-1]
    assert (last.state, last.step) == (Episode.STATE_TIMEOUT, STEPS), last.error
    canceled = goal.result().cancel_goal_async()
    wait_for(canceled.done, TIMEOUT)
    last_ns = to_ns(last.header.stamp)
    wait_for(lambda: last_ns in client.joints, TIMEOUT)
    stamps = [last_ns - index * 50_000_000 for index in reversed(range(STEPS + 1))]
    return (np.array([client.joints[stamp] for stamp in stamps]),
            [one for one in client.actions if one.chunk_sequence])


def test_one_episode_in_lockstep_through_the_worker_and_the_same_again(
        client, wait_for, tmp_path, domain_id):
    specs = demo_graph({})
    for spec in specs:
        if spec.name == BRIDGE_NODE:
            spec.parameters['max_steps'] = STEPS
    with ProcessGroup(specs, tmp_path) as processes:
        def ready():
            processes.check()
            return client.resets.service_is_ready() and client.tasks.server_is_ready() and any(
                one.header.frame_id for one in client.actions)
        wait_for(ready, TIMEOUT)
        assert len(processes_of(os.environ['ROS_LOG_DIR'])) >= 3  # policy, worker, bridge
        (first, commands), (second, _) = play(client, wait_for), play(client, wait_for)
        processes.check()
    np.testing.assert_array_equal(first, second)
    assert np.ptp(first, axis=0).max() > 1e-2, 'the arm did not move'
    assert len(commands) >= STEPS
    for command in commands:  # rule (b): every command names where it comes from
        assert command.instruction and to_ns(command.observation_stamp) > 0
        assert np.isfinite(command.gripper)
    assert client.actions[-1].verdict == DeltaAction.VERDICT_HOLD  # rule (e)
    deadline = time.monotonic() + 10
    while processes_of(os.environ['ROS_LOG_DIR']):
        assert time.monotonic() < deadline, 'a process was left behind'
        time.sleep(0.05)
