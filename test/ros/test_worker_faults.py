# SPDX-License-Identifier: Apache-2.0
"""The real program with its real worker: it dies, hangs and comes back, and leaves no orphan.

What a dead worker means: zero motion within the watchdog time, ERROR diagnostic, the goal aborted
with its reason, restart within the budget.
"""

import os
import signal

from action_msgs.msg import GoalStatus
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
import numpy as np
from policy_client import send_goal
from processes import children_of, is_alive
import pytest
from rclpy.action import ActionClient
from rclpy.node import Node
from sensor_msgs.msg import Image

from worldvla_ros.action import RunTask
from worldvla_ros.datatypes import Frame
from worldvla_ros.graph import POLICY_NODE, NodeSpec
from worldvla_ros.msg import DeltaAction, PolicyStatus
from worldvla_ros.nodes.conversions import frame_to_image, to_ns
from worldvla_ros.nodes.process_group import ProcessGroup

LOADED = 60.0  # [s] for a start or restart on a busy machine
WATCHDOG_NS = 3_000_000_000
PARAMETERS = {'checkpoint': 'random', 'worker.threads': 1, 'worker.heartbeat_timeout': 3.0,
              'worker.answer_timeout': 3.0, 'status_rate': 20.0, 'camera.crop': 'none'}


class Client(Node):
    """A camera that shows noise, and somebody who gives tasks and listens."""

    def __init__(self, context):
        super().__init__('client', context=context)
        self.actions, self.statuses, self.diagnostics = [], [], []
        self._random = np.random.default_rng(0)
        self._camera = self.create_publisher(Image, 'image', 1)
        self.create_timer(0.05, self._show)
        for message_type, topic, inbox in (
                (DeltaAction, f'{POLICY_NODE}/action', self.actions),
                (PolicyStatus, f'{POLICY_NODE}/status', self.statuses),
                (DiagnosticArray, '/diagnostics', self.diagnostics)):
            self.create_subscription(message_type, topic, inbox.append, 100)
        self.tasks = ActionClient(self, RunTask, f'{POLICY_NODE}/run_task')

    def _show(self):
        noise = self._random.integers(0, 256, (64, 64, 3), np.uint8)
        self._camera.publish(
            frame_to_image(Frame(noise, self.get_clock().now().nanoseconds), 'camera'))

    @property
    def status(self):
        """The newest status; an empty one before the first."""
        return self.statuses[-1] if self.statuses else PolicyStatus()

    def moves_since(self, number):
        """Commands that move after the first `number`."""
        return [one for one in self.actions[number:] if is_motion(one)]

    def worker_faults(self):
        """Texts of the worker's ERROR diagnostics."""
        return [one.message for array in self.diagnostics for one in array.status
                if one.name.endswith(': worker') and one.level == DiagnosticStatus.ERROR]


def is_motion(action):
    """Whether a command moves the hand."""
    parts = (action.translation, action.rotation_vector)
    return any(value != 0 for part in parts for value in (part.x, part.y, part.z))


def worker_of(pid):
    """Process id of the worker of a policy program, or None."""
    children = children_of(pid)
    assert len(children) < 2
    return children[0] if children else None


@pytest.fixture
def start_policy(domain_id, tmp_path):
    """Start the policy program; its process id. Whatever is left of it is stopped at the end."""
    groups = []

    def start_policy(**parameters):
        group = ProcessGroup(
            [NodeSpec(POLICY_NODE, POLICY_NODE, {**PARAMETERS, **parameters})], tmp_path)
        groups.append(group)
        group.__enter__()
        return group.process_ids[POLICY_NODE]
    yield start_policy
    for group in groups:
        group.__exit__()
        print(group.log_path(POLICY_NODE).read_text())  # pytest shows it when the test failed


@pytest.fixture
def client(context, spin):
    """See Client."""
    return spin(Client(context))


@pytest.fixture
def move(client, wait_for):
    """Give a task and wait until the robot moves; the goal handle."""
    def move():
        wait_for(lambda: client.status.state == PolicyStatus.STATE_IDLE, LOADED)
        wait_for(client.tasks.server_is_ready)
        number = len(client.actions)
        goal = send_goal(client, client.tasks, RunTask.Goal(instruction='pick up the milk'),
                         wait_for)
        assert goal.accepted
        wait_for(lambda: len(client.moves_since(number)) >= 10)
        return goal
    return move


def test_a_killed_worker_means_zero_motion_an_aborted_goal_then_motion_again_until_the_end(
        client, move, start_policy, wait_for):
    policy = start_policy(**{'worker.max_restarts': 1})
    goal = move()
    worker = worker_of(policy)
    ended = goal.get_result_async()
    killed_ns = client.get_clock().now().nanoseconds
    os.kill(worker, signal.SIGKILL)
    wait_for(ended.done)
    number = len(client.actions)
    assert ended.result().status == GoalStatus.STATUS_ABORTED
    assert ended.result().result.termination == RunTask.Result.TERMINATION_WORKER_DOWN
    assert 'died by signal 9' in ended.result().result.message
    wait_for(client.worker_faults)
    assert 'died by signal 9' in client.worker_faults()[0]

    wait_for(lambda: client.status.state == PolicyStatus.STATE_IDLE
             and client.status.worker_restarts == 1, LOADED)
    last_motion_ns = max(to_ns(one.header.stamp) for one in client.actions if is_motion(one))
    assert last_motion_ns - killed_ns < WATCHDOG_NS and not client.moves_since(number)
    assert len(client.actions) > number, 'zero motion is explicit, not silence'
    assert not is_alive(worker) and worker_of(policy) not in (None, worker)
    move()

    worker = worker_of(policy)
    os.kill(policy, signal.SIGTERM)
    wait_for(lambda: not is_alive(policy) and not is_alive(worker))
    wait_for(lambda: client.actions[-1].reason == DeltaAction.REASON_SHUTDOWN)
    assert not is_motion(client.actions[-1])


def test_a_hung_worker_without_a_budget_ends_in_a_state_of_error(
        client, move, start_policy, wait_for):
    policy = start_policy(**{'worker.max_restarts': 0})
    goal = move()
    worker = worker_of(policy)
    ended = goal.get_result_async()
    os.kill(worker, signal.SIGSTOP)
    wait_for(ended.done)
    assert ended.result().status == GoalStatus.STATUS_ABORTED
    assert ended.result().result.termination == RunTask.Result.TERMINATION_WORKER_DOWN
    assert 'did not answer' in ended.result().result.message
    wait_for(lambda: not is_alive(worker))
    wait_for(lambda: client.status.state == PolicyStatus.STATE_ERROR)
    wait_for(lambda: worker_of(policy) is None)
    fault = wait_for(client.worker_faults)[-1]  # they come just after the status
    assert 'restart budget is spent' in fault and 'deactivate the node, clean it up' in fault
    number = len(client.actions)
    wait_for(lambda: len(client.actions) > number + 10)
    assert not client.moves_since(number)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_worker_is_left_when_the_program_ends_by(number, start_policy, wait_for):
    policy = start_policy()
    worker = wait_for(lambda: worker_of(policy))
    os.kill(policy, number)
    wait_for(lambda: not is_alive(policy) and not is_alive(worker))
