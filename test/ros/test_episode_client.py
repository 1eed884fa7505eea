# SPDX-License-Identifier: Apache-2.0
"""The client of an episode: it starts although DDS may lose an answer."""

import contextlib
import threading

from lifecycle_msgs.msg import State
from lifecycle_msgs.srv import GetState
import pytest
import rclpy
from rclpy.executors import SingleThreadedExecutor

from worldvla_ros.errors import WorldVLAError
from worldvla_ros.graph import POLICY_NODE
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
