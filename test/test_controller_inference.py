# SPDX-License-Identifier: Apache-2.0
"""What comes from the model: nonsense, failures, and chunks that a service asked for."""

from control_loop import GAIN, HORIZON, PERIOD, SECOND, Loop, assert_hold, chunk_actions, lockstep
from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from worldvla_ros.control.settings import LOCKSTEP, ObservationSettings
from worldvla_ros.errors import FrameError, InferenceError
from worldvla_ros.inference.backend import Health
from worldvla_ros.safety.limits import Reason, SafetyLimits, Verdict

# --- what the model may say -------------------------------------------------------------------


@pytest.mark.parametrize('axis', [0, 4, 6])
@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_a_value_that_is_no_number_holds_for_that_step_only(axis, bad):
    loop = Loop()
    actions = chunk_actions(1)
    actions[1, axis] = bad
    loop.backend.answers[1] = actions
    loop.run()
    outgoing = loop.step()
    assert_hold(outgoing, Reason.NOT_FINITE)
    assert (outgoing.action.chunk_sequence, outgoing.action.step) == (1, 1)
    assert loop.step().verdict is Verdict.PASS


@given(st.lists(st.lists(st.floats(width=32), min_size=7, max_size=7), min_size=1, max_size=6))
def test_whatever_the_model_says_the_commands_are_finite_and_inside_the_limits(actions):
    loop = Loop()
    loop.backend.answers[1] = np.array(actions, np.float32)
    limits = loop.controller.settings.limits
    loop.controller.set_instruction('go')
    for outgoing in loop.steps(len(actions) + 2):
        command = outgoing.command
        assert command.is_finite
        assert np.abs(command.translation).max() <= limits.max_translation
        assert np.abs(command.rotation_vector).max() <= limits.max_rotation
        assert limits.gripper_min <= command.gripper <= limits.gripper_max


def test_a_workspace_needs_the_end_effector_position():
    loop = Loop(limits=SafetyLimits(workspace_max=(0.5, 0.5, 0.5)))
    loop.backend.answers[1] = chunk_actions(100)
    loop.controller.set_instruction('go')
    loop.steps(2)
    assert_hold(loop.outgoing, Reason.WORKSPACE, gripper=0)
    assert loop.controller.halt is Reason.WORKSPACE
    assert not loop.backend.requests, 'a plan made now would be old when the position comes'
    outgoing = [(loop.reach(0.499), loop.step())[1] for _ in range(2)][-1]
    assert outgoing.reason is Reason.WORKSPACE and outgoing.verdict is Verdict.LIMITED
    assert outgoing.action.step == 0
    assert outgoing.command.translation[0] == pytest.approx(0.001)
    assert loop.controller.halt is Reason.NONE


@pytest.mark.parametrize('age', [SECOND, -SECOND])
def test_a_position_of_another_time_does_not_count_for_the_workspace(age):
    """Pins a bug: the last position counted for ever, and the arm could leave the box."""
    loop = Loop(limits=SafetyLimits(workspace_max=(0.5, 0.5, 0.5)))
    loop.controller.set_instruction('go')
    loop.reach(0.2, age)
    assert_hold(loop.steps(2)[-1], Reason.WORKSPACE, gripper=0)


def test_without_a_position_no_step_is_counted_and_a_fresh_chunk_goes_on():
    """Pins a bug: the chunk went on behind the holds, and later from its middle."""
    loop = Loop(limits=SafetyLimits(workspace_max=(0.5, 0.5, 0.5)))
    loop.reach(0.2)
    loop.run()
    counted = loop.controller.steps
    loop.steps(20)
    assert_hold(loop.outgoing, Reason.WORKSPACE)
    lost, asked = loop.controller.steps, len(loop.backend.requests)
    assert lost - counted <= loop.controller._pose_tolerance_ns / PERIOD
    loop.steps(20)
    assert (loop.controller.steps, len(loop.backend.requests)) == (lost, asked)
    outgoing = [(loop.reach(0.2), loop.step())[1] for _ in range(3)]
    first = next(one.action for one in outgoing if one.action is not None)
    assert first.step == 0 and loop.backend.request_of(first.chunk) == asked


def test_in_lockstep_the_position_is_waited_for_and_the_plan_stays_good():
    loop = Loop(mode=LOCKSTEP, limits=SafetyLimits(
        workspace_max=(0.5, 0.5, 0.5), pose_timeout=0.4 * PERIOD / SECOND))
    loop.controller.set_instruction('go')
    for number in range(2 * HORIZON):
        loop.see()
        assert loop.answer() is None and loop.controller.halt is Reason.WORKSPACE
        assert loop.controller.idle(loop.now, loop.now).action is None
        loop.reach(0.2)
        outgoing = loop.answer() or loop.answer()  # the first asks for the chunk, if one is due
        assert outgoing.action.step == number % HORIZON
        loop.now += PERIOD
    assert len(loop.backend.requests) == 2


def test_a_position_of_the_episode_before_does_not_count_for_the_workspace():
    loop = Loop(limits=SafetyLimits(workspace_max=(0.5, 0.5, 0.5)))
    loop.reach(0.2)
    loop.run()
    loop.controller.reset_history()
    loop.steps(2)
    assert_hold(loop.outgoing, Reason.WORKSPACE)


def full_speed(count):
    """Return actions that ask for 5 cm along x each."""
    actions = np.zeros((count, 7), np.float32)
    actions[:, 0] = 1.0
    return actions


def test_between_two_poses_the_commands_count_and_the_arm_stays_in_its_box():
    """Pins a bug: while an old pose still counted, the arm could leave the box by 13 cm."""
    wall = 0.25
    loop = Loop(limits=SafetyLimits(workspace_max=(wall, 1.0, 1.0)), replan_steps=10)
    loop.backend.answers[1] = full_speed(10)
    loop.controller.set_instruction('go')
    loop.step()
    loop.reach(wall - 0.05)
    x, outgoing = wall - 0.05, loop.steps(10)
    for one in outgoing:
        x += GAIN * one.command.translation[0]
        assert x <= wall
    assert outgoing[-1].reason is Reason.WORKSPACE
    assert x > wall - 0.01, 'it gets near the wall'


def test_a_pose_that_comes_in_time_makes_older_commands_no_matter():
    """Counted twice, the commands would stop the arm before the wall."""
    wall, x = 0.5, 0.4
    loop = Loop(limits=SafetyLimits(workspace_max=(wall, 1.0, 1.0)), replan_steps=4)
    loop.backend.answers[1] = full_speed(4)
    loop.controller.set_instruction('go')
    loop.reach(x)
    loop.step()
    for _ in range(4):
        loop.now += PERIOD
        loop.see()
        loop.reach(x)
        outgoing = loop.controller.tick(loop.now, loop.now)
        x += GAIN * outgoing.command.translation[0]
        assert outgoing.verdict is Verdict.PASS


# --- failures ---------------------------------------------------------------------------------


def test_a_failed_inference_is_tried_again_after_a_pause_and_recovers():
    loop = Loop()
    loop.backend.answers = {1: 'out of memory', 2: 'out of memory'}
    loop.controller.set_instruction('go')
    outgoing = loop.steps(15)
    assert [one.reason for one in outgoing] == [Reason.WAITING_FOR_CHUNK] + 14 * [
        Reason.INFERENCE_FAILED]
    assert loop.controller.inference_error == 'out of memory'
    assert len(loop.backend.requests) == 1
    loop.steps(30)
    assert len(loop.backend.requests) == 3
    assert any(one.action is not None for one in loop.steps(2))
    assert loop.controller.inference_error == ''


def test_failures_in_succession_are_counted_for_the_instruction_that_has_them():
    loop = Loop()
    loop.backend.answers = dict.fromkeys((1, 2, 4), 'out of memory')
    loop.controller.set_instruction('go')
    loop.steps(25)
    assert loop.controller.failures == (2, 'out of memory')
    loop.controller.set_paused(True)
    loop.controller.set_paused(False)
    assert loop.controller.inference_error == '', 'it is tried again at once'
    assert loop.controller.failures == (2, 'out of memory'), 'and yet it fails'
    loop.steps(6)
    assert loop.controller.failures == (1, 'out of memory')  # one chunk came in between
    loop.controller.set_instruction('come')
    assert loop.controller.failures == (0, '')


def test_a_frame_that_the_backend_refuses_is_a_failed_inference_and_no_crash():
    loop = Loop()
    loop.backend.refusal = FrameError('too large')
    loop.controller.set_instruction('go')
    assert_hold(loop.step(), Reason.INFERENCE_FAILED, gripper=0)
    assert loop.controller.inference_error == 'too large'
    loop.backend.refusal = None
    assert any(one.action is not None for one in loop.steps(25))


@pytest.mark.parametrize('schedule', ['sync', 'async'])
def test_a_chunk_from_an_old_picture_is_dropped_and_the_next_in_time_runs(schedule):
    """Pins a bug: it ran however long the inference had taken."""
    loop = Loop(latency=None, obs=ObservationSettings(max_chunk_age=0.3), schedule=schedule)
    loop.controller.set_instruction('go')
    loop.steps(8)
    loop.backend.finish()
    late = loop.step()
    assert_hold(late, Reason.UNDERRUN, gripper=0)
    assert loop.controller.halt is Reason.UNDERRUN and not loop.arrivals
    assert (loop.controller.schedule.dropped_chunks, loop.controller.schedule.underruns) == (1, 1)
    loop.backend.latency = 0
    assert loop.steps(2)[-1].action.chunk_sequence == 1
    assert loop.controller.halt is Reason.NONE


def test_lockstep_takes_a_chunk_however_long_it_took():
    loop = lockstep(latency=None, obs=ObservationSettings(max_chunk_age=0.3))
    loop.see()
    assert loop.answer() is None
    loop.backend.finish()
    later = loop.now + 2 * SECOND // 5
    assert loop.controller.answer(later, later).action is not None


def test_the_failure_of_a_void_request_does_not_delay_the_next():
    loop = Loop(latency=None)
    loop.backend.answers[1] = 'the instruction is too long'
    loop.controller.set_instruction('go')
    loop.step()
    loop.controller.set_instruction('stop it')
    loop.backend.finish()
    assert_hold(loop.step(), Reason.WAITING_FOR_CHUNK, gripper=0)
    assert [observation.instruction for _, observation in loop.backend.requests] == [
        'go', 'stop it']


# --- services ---------------------------------------------------------------------------------


def test_a_service_gets_its_chunk_and_nothing_moves():
    loop = Loop()
    results = []
    loop.see()
    loop.controller.inquiries.chunk('look', results.append)
    assert_hold(loop.step(), Reason.NO_INSTRUCTION, gripper=0)
    assert_hold(loop.step(), Reason.NO_INSTRUCTION, gripper=0)
    assert [one.chunk.instruction for one in results] == ['look']
    assert loop.arrivals == [] and loop.controller.schedule.queue_depth == 0


def test_a_service_waits_for_the_chunk_of_the_robot_and_does_not_disturb_it():
    loop = Loop(latency=2).run(4)
    results = []
    loop.steps(3)
    assert loop.backend.busy
    loop.controller.inquiries.chunk('look', results.append)
    loop.steps(12)
    assert [one.chunk.instruction for one in results] == ['look']
    assert {one.chunk.instruction for one in loop.arrivals} == {'go'}


@pytest.mark.parametrize('camera, worker, reason', [
    (False, Health.READY, 'no frame'), (True, Health.LOADING, 'loading')])
def test_a_service_that_cannot_be_served_gets_the_reason(camera, worker, reason):
    loop = Loop()
    results = []
    loop.backend.health = worker
    loop.backend.refusal = InferenceError(f'the worker is {worker.value}')
    loop.controller.inquiries.chunk('look', results.append)
    loop.step(camera=camera)
    result, = results
    assert result.chunk is None and reason in result.error
