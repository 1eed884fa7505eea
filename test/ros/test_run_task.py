# SPDX-License-Identifier: Apache-2.0
"""The action ~/run_task: one goal at a time, limits, cancel, preemption, and why it ended."""

import math
from types import SimpleNamespace

from action_msgs.msg import GoalStatus
import numpy as np
from policy_client import TASK, is_zero
import pytest

from worldvla_ros.action import RunTask
from worldvla_ros.errors import InstructionError
from worldvla_ros.inference.backend import Health
from worldvla_ros.msg import DeltaAction
from worldvla_ros.nodes.task_server import TaskServer
from worldvla_ros.safety.limits import Reason

Result = RunTask.Result


def test_a_goal_that_the_estop_overtakes_before_it_runs_says_so():
    """Between accepting a goal and following it, the e-stop may be locked."""
    def follow(instruction):
        raise InstructionError('the e-stop is locked; call ~/estop_reset')
    loop = SimpleNamespace(follow=follow, now_ns=lambda: 0,
                           controller=SimpleNamespace(steps=0))
    goal = SimpleNamespace(is_cancel_requested=False, request=RunTask.Goal(instruction=TASK),
                           abort=lambda: ended.append('aborted'))
    ended, server = [], TaskServer.__new__(TaskServer)
    server._loop, server._run = lambda: loop, None
    with pytest.raises(StopIteration) as returned:
        server._execute(goal).send(None)
    result = returned.value.value
    assert ended == ['aborted'] and server._run is None
    assert result.termination == Result.TERMINATION_ESTOP and 'estop_reset' in result.message


def test_a_goal_that_is_cancelled_before_it_runs_leaves_the_running_one_alone():
    """Pins a bug: that one was told that it was pre-empted, and the robot moved on for nobody."""
    ended, server = [], TaskServer.__new__(TaskServer)
    server._loop, server._run = lambda: SimpleNamespace(), object()
    server.end = lambda *reason: ended.append(reason)
    goal = SimpleNamespace(is_cancel_requested=True, canceled=lambda: None)
    with pytest.raises(StopIteration) as returned:
        server._execute(goal).send(None)
    assert returned.value.value.termination == Result.TERMINATION_CANCELED and not ended


def test_a_goal_whose_client_has_gone_says_so(monkeypatch):
    """It was called canceled, as if someone had asked for that."""
    ended, server = [], TaskServer.__new__(TaskServer)
    server._run = SimpleNamespace(
        goal=SimpleNamespace(request=RunTask.Goal()), has_limit=False, elapsed=lambda now_ns: 9.0,
        controller=SimpleNamespace(failures=(0, ''), halt=Reason.NONE,
                                   backend=SimpleNamespace(health=Health.READY)))
    server.end = lambda termination, message: ended.append(termination)
    monkeypatch.setattr(server, '_is_alone', lambda run: True)
    server.check(now_ns=0)
    assert ended == [Result.TERMINATION_CLIENT_GONE]


@pytest.fixture
def ready(start_policy, client):
    """Return a client whose policy waits for a goal."""
    start_policy()
    client.camera_on()
    return client


def test_a_goal_runs_for_as_many_steps_as_it_may_and_not_one_more(ready):
    status, result = ready.result_of(ready.send_goal(max_steps=12))
    assert status == GoalStatus.STATUS_SUCCEEDED
    assert result.termination == Result.TERMINATION_MAX_STEPS and result.steps == 12
    assert 'steps' in result.message and 0 < result.duration < 20
    ready.next_halt(DeltaAction.REASON_NO_INSTRUCTION)
    moved = [action for action in ready.actions if action.chunk_sequence]
    assert len(moved) == 12 and {action.instruction for action in moved} == {TASK}
    assert [echo.data for echo in ready.followed] == [TASK, '']


def test_a_goal_ends_after_its_time(ready):
    status, result = ready.result_of(ready.send_goal(max_duration=0.3))
    assert status == GoalStatus.STATUS_SUCCEEDED
    assert result.termination == Result.TERMINATION_MAX_DURATION and result.duration >= 0.3


def test_the_time_of_a_goal_runs_without_a_camera_too(ready):
    ready.shoot = None
    ready.next_status(lambda status: status.observation_age > 0.5 or status.observation_age < 0)
    status, result = ready.result_of(ready.send_goal(max_duration=0.2))
    assert status == GoalStatus.STATUS_SUCCEEDED and result.steps == 0


def test_a_goal_without_limits_does_not_outlive_its_client(ready):
    """Pins a bug: a client that was killed left a robot that moved on, for nobody to stop."""
    ready.send_goal()
    ready.next_motion()
    gone = ready.node.executor.create_task(ready.tasks.destroy)
    ready.wait_for(gone.done)
    ready.next_halt(DeltaAction.REASON_NO_INSTRUCTION)
    assert [echo.data for echo in ready.followed] == [TASK, '']


def test_a_sentence_that_is_repeated_does_not_go_on_where_a_goal_ended(ready):
    """Pins a bug: the robot moved on without any limit."""
    repeating = ready.node.create_timer(0.02, ready.instruct)
    for _ in range(3):  # by topic, until the goal takes over
        ready.next(ready.followed)
    _, result = ready.result_of(ready.send_goal(max_steps=12))
    assert result.termination == Result.TERMINATION_MAX_STEPS and result.steps == 12
    count = len(ready.actions)
    for _ in range(20):
        ready.next(ready.followed)
    assert all(map(is_zero, ready.actions[count + 1:]))
    repeating.cancel()


def test_progress_is_reported_while_it_runs(ready):
    goal = ready.send_goal(max_steps=40)
    ready.result_of(goal)
    ready.wait_for(lambda: len(ready.feedback) > 2)
    steps = [feedback.steps for feedback in ready.feedback]
    assert steps == sorted(steps) and 0 < steps[-1] <= 40
    assert all(feedback.elapsed >= 0 and feedback.halt_reason == 0
               for feedback in ready.feedback[1:])


def test_a_cancelled_goal_stops_the_robot(ready):
    goal = ready.send_goal()
    ready.next_motion()
    cancel = goal.cancel_goal_async()
    ready.wait_for(cancel.done)
    status, result = ready.result_of(goal)
    assert status == GoalStatus.STATUS_CANCELED
    assert result.termination == Result.TERMINATION_CANCELED
    ready.next_halt(DeltaAction.REASON_NO_INSTRUCTION)
    assert is_zero(ready.actions[-1])


def test_another_goal_takes_over_and_each_counts_its_own_steps(ready):
    first = ready.send_goal('open the drawer')
    ready.next(ready.actions, lambda action: action.chunk_step == 4)
    second = ready.send_goal(max_steps=3)
    status, result = ready.result_of(first)
    assert status == GoalStatus.STATUS_ABORTED
    assert result.termination == Result.TERMINATION_PREEMPTED and 'another goal' in result.message
    assert result.steps == sum(action.instruction == 'open the drawer'
                               for action in ready.actions) and result.duration > 0.08
    _, result = ready.result_of(second)
    assert result.termination == Result.TERMINATION_MAX_STEPS and result.steps == 3


def test_an_instruction_by_topic_takes_over_from_a_goal(ready):
    goal = ready.send_goal('open the drawer')
    ready.next_motion()
    ready.instruct()
    status, result = ready.result_of(goal)
    assert status == GoalStatus.STATUS_ABORTED
    assert result.termination == Result.TERMINATION_PREEMPTED
    assert ready.next_motion().instruction == TASK


@pytest.mark.parametrize('instruction, limits, complaint', [
    ('', {}, 'empty'), (' \n ', {}, 'empty'), ('x' * 10_000, {}, '10000'),
    ('a\x07b', {}, 'plain text'), (TASK, {'max_duration': -1.0}, 'max_duration'),
    (TASK, {'max_duration': math.nan}, 'max_duration')])
def test_a_goal_that_cannot_be_followed_is_rejected_and_disturbs_nothing(
        running, capfd, instruction, limits, complaint):
    assert not running.send_goal(instruction, **limits).accepted
    assert complaint in capfd.readouterr().err
    assert running.next_motion().instruction == TASK


def test_the_estop_aborts_a_goal(ready):
    goal = ready.send_goal()
    ready.next_motion()
    ready.estop(True)
    status, result = ready.result_of(goal)
    assert status == GoalStatus.STATUS_ABORTED and result.termination == Result.TERMINATION_ESTOP
    ready.estop(False)
    ready.wait_for(lambda: ready.trigger('estop_reset').success)
    ready.next_halt(DeltaAction.REASON_NO_INSTRUCTION)  # nobody moves on unasked


def test_a_goal_ends_when_inference_fails_for_good(start_policy, client, tmp_path):
    """Pins a bug: without limits it never ended, because the worker was up."""
    np.savez(tmp_path / 'chunks.npz', actions=np.full((1, 5, 7), 0.1, np.float32))
    start_policy(backend='replay', replay_path=str(tmp_path / 'chunks.npz'))
    client.camera_on()
    goal = client.send_goal()
    client.next_halt(DeltaAction.REASON_INFERENCE_FAILED)
    status, result = client.result_of(goal)
    assert status == GoalStatus.STATUS_ABORTED and result.steps == 5
    assert result.termination == Result.TERMINATION_INFERENCE_FAILED
    assert 'failed 3 times' in result.message and 'the script is over' in result.message


def test_a_goal_is_aborted_when_the_node_stops_even_if_it_unloads_at_once(ready):
    goal = ready.send_goal()
    ready.next_motion()
    assert ready.transition('deactivate') and ready.transition('cleanup')
    status, result = ready.result_of(goal)
    assert status == GoalStatus.STATUS_ABORTED
    assert result.termination == Result.TERMINATION_DEACTIVATED
    assert ready.transition('configure') and ready.transition('activate')
    status, result = ready.result_of(ready.send_goal(max_steps=3))
    assert status == GoalStatus.STATUS_SUCCEEDED and result.steps == 3
