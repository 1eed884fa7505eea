# SPDX-License-Identifier: Apache-2.0
"""What begins an episode: lost answers, graphs that answer beside ours, commands of before."""

import contextlib
import threading

from bridge_client import start, wait_until
from lifecycle_msgs.msg import State
from lifecycle_msgs.srv import GetState
import numpy as np
import pytest
import rclpy
from rclpy.action.server import ActionServer
from rclpy.executors import SingleThreadedExecutor

from worldvla_ros.action import RunTask
from worldvla_ros.errors import WorldVLAError
from worldvla_ros.graph import BRIDGE_NODE, POLICY_NODE
from worldvla_sim.ros import episode_client
from worldvla_sim.ros.episode_client import EpisodeClient


class LostAnswer(Exception):
    """Raised in a service, it leaves the caller without an answer."""


class NoProcesses:
    """Stands for nodes that run in this process."""

    def check(self):
        """They never end."""

    def last_message(self, name):
        """Return what a policy says that could not be loaded."""
        return f'{name}: no such checkpoint'


@pytest.fixture
def asked(domain_id):
    """Requests to a policy node that could not load, and whose first answer is lost."""
    rclpy.init(domain_id=domain_id)
    requests, done = [], threading.Event()

    def answer(request, response):
        requests.append(request)
        if len(requests) == 1:
            raise LostAnswer
        response.current_state.id = State.PRIMARY_STATE_UNCONFIGURED
        return response

    node = rclpy.create_node(POLICY_NODE)
    node.create_service(GetState, '~/get_state', answer)
    executor = SingleThreadedExecutor()
    executor.add_node(node)

    def spin():
        while not done.is_set():
            with contextlib.suppress(LostAnswer):
                executor.spin_once(timeout_sec=0.05)
    thread = threading.Thread(target=spin)
    thread.start()
    yield requests
    done.set()
    thread.join(10)
    executor.shutdown()
    node.destroy_node()
    rclpy.shutdown()


@pytest.mark.timeout(60)
def test_a_lost_answer_of_the_policy_is_asked_for_again(asked):
    client = EpisodeClient(NoProcesses(), frames=False, start_timeout=30)
    try:
        with pytest.raises(WorldVLAError, match=r'could not be loaded: .*no such checkpoint'):
            client.wait_until_ready()
        assert len(asked) >= 2
    finally:
        client.destroy_node()


@pytest.fixture
def client(domain_id):
    """A client, and what makes nodes beside it."""
    rclpy.init(domain_id=domain_id)
    client = EpisodeClient(NoProcesses(), frames=False, start_timeout=30)
    nodes = [client]

    def beside(name):
        nodes.append(rclpy.create_node(name))
        return nodes[-1]
    yield client, beside
    for node in reversed(nodes):
        node.destroy_node()
    rclpy.shutdown()


@pytest.mark.timeout(60)
@pytest.mark.parametrize('name', [POLICY_NODE, BRIDGE_NODE])
def test_two_nodes_of_one_name_are_refused_before_the_robot_is_touched(
        client, wait_for, monkeypatch, name):
    """Pins a bug: two graphs in one domain played the same episode, each with its commands."""
    monkeypatch.setattr(episode_client, '_GHOST_TIME', 0.2)
    client, beside = client
    beside(name)
    client._refuse_twins()
    beside(name)
    wait_for(lambda: client.get_node_names().count(name) == 2)
    with pytest.raises(WorldVLAError, match=f'2 nodes answer to /{name} in ROS domain'):
        client.play('libero_object', 0, 0)


@pytest.mark.timeout(60)
def test_two_action_servers_of_one_name_are_refused(client, wait_for, monkeypatch):
    monkeypatch.setattr(episode_client, '_GHOST_TIME', 0.2)
    client, beside = client
    topic = f'/{POLICY_NODE}/run_task'
    servers = [ActionServer(beside(name), RunTask, topic, lambda goal: RunTask.Result())
               for name in ('one', 'other')]
    wait_for(lambda: client.count_services(f'{topic}/_action/send_goal') == 2)
    with pytest.raises(WorldVLAError, match=f'2 nodes answer to /{POLICY_NODE}'):
        client._refuse_twins()
    for server in servers:
        server.destroy()


@pytest.mark.timeout(60)
def test_a_node_that_is_going_is_waited_for(client, wait_for):
    """One that was killed is in the graph for a while, beside the one that took its place."""
    client, beside = client
    beside(POLICY_NODE)
    leaving = beside(POLICY_NODE)
    wait_for(client._twins)
    timer = threading.Timer(1.0, leaving.destroy_node)
    timer.start()
    client._refuse_twins()
    assert not client._twins()
    timer.join()


@pytest.fixture(scope='module')
def realtime_robot(claim_domain):
    """A robot beside a bridge in realtime."""
    for _, robot in start(claim_domain(), mode='realtime', max_steps=10_000):
        yield robot


def test_realtime_refuses_a_command_of_the_episode_before(realtime_robot):
    """Pins a bug: a command that waited during a reset moved the arm of the new episode.

    One without a stamp is taken, as it was: a node of a user's own may not fill it in.
    """
    robot, closing = realtime_robot, np.array([1.0, 0, 0, 0, 0, 0, 1.0])
    task = {'suite': 'libero_object', 'task': 0, 'init_state': 3}

    def play(steps, stamp_ns):
        """Send the command before each step; return how far hand and fingers have moved [m]."""
        fingers, x = robot.joints[-1].position[-2:], robot.poses[-1].pose.position.x
        for _ in range(steps):
            robot.send(closing, stamp_ns=stamp_ns)
            step = robot.episodes[-1].step
            wait_until(lambda before=step: robot.episodes[-1].step > before)
        wait_until(lambda: robot.episodes[-1].step > step + 2)
        return (np.ptp([fingers, robot.joints[-1].position[-2:]], axis=0).max(),
                robot.poses[-1].pose.position.x - x)
    robot.reset(**task)
    before_ns = robot.episode_ns
    robot.reset(**task)
    fingers, hand = play(10, before_ns)
    assert fingers < 2e-3 and abs(hand) < 2e-3
    assert any('before this episode' in log.msg for log in robot.logs)
    for stamped in (False, True):
        robot.reset(**task)
        fingers, hand = play(10, robot.newest_ns if stamped else 0)
        assert fingers > 5e-3 and hand > 0.03
