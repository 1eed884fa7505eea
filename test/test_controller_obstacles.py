# SPDX-License-Identifier: Apache-2.0
"""Obstacles: zero motion with its reason, and a fresh chunk afterwards."""

from control_loop import (
    GRIPPER,
    HORIZON,
    PERIOD,
    SECOND,
    TOOL_DOWN,
    Loop,
    assert_hold,
    frame,
    lockstep,
)
import numpy as np
from obstacles import OBSTACLES, lose_camera, lose_worker, pause, press_estop
import pytest

from worldvla_ros.control.settings import ObservationSettings
from worldvla_ros.errors import InstructionError
from worldvla_ros.policy.frame_history import PushResult
from worldvla_ros.safety.limits import Reason, SafetyLimits, Verdict

any_obstacle = pytest.mark.parametrize('reason', OBSTACLES, ids=lambda reason: reason.name)


def gripper_at(reason):
    """Two commanders must not pull at the gripper: it is left to the other one."""
    return 0.0 if reason is Reason.CONFLICT else GRIPPER


@any_obstacle
@pytest.mark.parametrize('schedule', ['sync', 'async'])
def test_an_obstacle_holds_at_once_and_afterwards_only_a_fresh_chunk_moves(reason, schedule):
    appear, vanish = OBSTACLES[reason]
    loop = Loop(schedule=schedule).run()
    appear(loop)
    for _ in range(5):
        assert_hold(loop.step(camera=False), reason, gripper_at(reason))
        assert loop.controller.halt is reason and loop.controller.schedule.queue_depth == 0
        if reason is Reason.CLOCK:
            loop.now -= PERIOD
    submitted = len(loop.backend.requests)
    vanish(loop)
    vanished = loop.now
    assert_hold(loop.step(), Reason.WAITING_FOR_CHUNK, gripper_at(reason))
    outgoing = loop.step()
    assert outgoing.verdict is Verdict.PASS and outgoing.action.step == 0
    assert len(loop.backend.requests) == submitted + 1
    assert outgoing.action.chunk.frame_stamps_ns[-1] > vanished


@any_obstacle
@pytest.mark.parametrize('schedule', ['sync', 'async'])
@pytest.mark.parametrize('starved', [False, True])
def test_a_chunk_in_flight_when_an_obstacle_appears_is_never_run(reason, schedule, starved):
    """Starved pins a bug: being halted already, it did not void the chunk in flight."""
    appear, vanish = OBSTACLES[reason]
    loop = Loop(schedule=schedule, replan_steps=2).run()
    loop.backend.latency = None
    loop.steps(6 if starved else 2)
    assert loop.backend.busy
    void = len(loop.backend.requests)
    appear(loop)
    assert_hold(loop.step(camera=False), reason, gripper_at(reason))
    if loop.backend.busy:
        loop.backend.finish()
    if reason is Reason.CLOCK:
        loop.now -= PERIOD
    assert_hold(loop.step(camera=False), reason, gripper_at(reason))
    loop.backend.latency = 0
    vanish(loop)
    moved = [one.action for one in loop.steps(6) if one.action is not None]
    assert moved and all(loop.backend.request_of(one.chunk) >= void for one in moved)


def test_without_a_camera_it_says_that_no_frame_has_come():
    loop = Loop()
    loop.controller.set_instruction('go')
    assert_hold(loop.step(camera=False), Reason.NO_OBSERVATION, gripper=0)
    assert loop.controller.sensing.age(loop.now) == -1


@pytest.mark.parametrize('schedule', ['async', 'sync'])
def test_a_frozen_camera_holds_until_the_picture_changes(schedule):
    loop = Loop(obs=ObservationSettings(frozen_after=5), schedule=schedule, replan_steps=1).run()
    for _ in range(12):
        loop.now += PERIOD
        loop.see(value=1)
        outgoing = loop.controller.tick(loop.now, loop.now)
    assert_hold(outgoing, Reason.FROZEN_CAMERA)
    assert_hold(loop.step(), Reason.WAITING_FOR_CHUNK)
    assert loop.step().verdict is Verdict.PASS


def loop_whose_estop_was_silent():
    """Return a loop that its e-stop's silence locked; a sign of life has come since."""
    loop = Loop(heartbeat_ns=SECOND // 5)
    loop.estop.set(False, loop.now)
    assert loop.estop.reset(loop.now)
    loop.run()
    assert_hold(loop.steps(3)[-1], Reason.ESTOP)
    loop.estop.set(False, loop.now)
    return loop


def test_a_silent_estop_topic_locks_where_a_heartbeat_is_asked_for():
    loop = loop_whose_estop_was_silent()
    assert_hold(loop.step(), Reason.ESTOP)  # a sign of life alone does not unlock it


@pytest.mark.parametrize('instruct_while_locked', [False, True])
def test_the_reset_of_an_estop_starts_no_motion(instruct_while_locked):
    """Pins a bug: the reset alone went on with the instruction from before the stop."""
    loop = Loop().run()
    press_estop(loop)
    if instruct_while_locked:
        with pytest.raises(InstructionError, match='estop_reset'):
            loop.controller.set_instruction('go')
    loop.estop.set(False, loop.now)
    assert loop.estop.reset(loop.now)
    for outgoing in loop.steps(5):
        assert_hold(outgoing, Reason.NO_INSTRUCTION)
    loop.run()


def test_a_heartbeat_that_comes_back_and_a_reset_start_no_motion():
    loop = loop_whose_estop_was_silent()
    assert loop.estop.reset(loop.now)
    assert_hold(loop.step(), Reason.NO_INSTRUCTION)


def test_a_controller_that_starts_again_leaves_the_gripper_as_it_is():
    """Pins a bug: what an operator had taken out of the hand, it closed or opened on again."""
    loop = Loop().run()
    loop.controller.stop(Reason.INACTIVE, 'stopped')
    loop.controller.restart()
    assert_hold(loop.step(camera=False), Reason.NO_INSTRUCTION, gripper=0.0)


def test_the_gravest_obstacle_is_the_one_reported():
    loop = Loop().run()
    lose_camera(loop)
    lose_worker(loop)
    assert loop.step(camera=False).reason is Reason.WORKER_DOWN
    pause(loop)
    assert loop.step(camera=False).reason is Reason.PAUSED
    press_estop(loop)
    assert loop.step(camera=False).reason is Reason.ESTOP


def test_stamps_that_jump_back_void_the_plan():
    loop = Loop().run()
    loop.now -= 10 * SECOND
    assert_hold(loop.step(), Reason.WAITING_FOR_CHUNK)
    assert loop.step().action.chunk.frame_stamps_ns == (loop.now - PERIOD,)


@pytest.mark.parametrize('back', [1, 200, 400, 900])
def test_a_clock_that_is_set_back_leaves_nothing_of_the_time_before(back):
    """Pins a bug: up to a second's worth of old frames was taken for new, and of new for old."""
    loop = Loop().run()
    loop.now -= back * SECOND // 1000
    asked = len(loop.backend.requests)
    assert loop.controller.tick(loop.now, loop.now).action is None
    loop.steps(3)
    assert loop.outgoing.action is not None
    seen = [one.stamp_ns for _, observation in loop.backend.requests[asked:]
            for one in observation.frames]
    assert seen and loop.now - 4 * PERIOD < min(seen) and max(seen) <= loop.now
    assert loop.controller.sensing.age(loop.now) == 0


@pytest.mark.parametrize('back', [200, 400, 900])
def test_a_clock_that_is_set_back_leaves_no_pose_of_the_time_before(back):
    """Pins a bug: the arm went 4 cm past the wall while the pose of before counted as new."""
    loop = Loop(limits=SafetyLimits(workspace_max=(0.1, 1.0, 1.0), workspace_min=(-1.0,) * 3))
    loop.reach(0.05)
    loop.run()
    loop.now -= back * SECOND // 1000
    assert_hold(loop.controller.tick(loop.now, loop.now), Reason.NO_OBSERVATION)
    assert_hold(loop.step(), Reason.WORKSPACE)
    loop.reach(0.05)
    loop.steps(3)
    assert loop.outgoing.action is not None


@pytest.mark.parametrize('back', [200, 450, 900])
def test_what_was_on_its_way_while_the_clock_was_set_back_is_dropped(back):
    """Pins a bug: it counted as the newest, shut out all that came after, and the arm went on."""
    loop = Loop(limits=SafetyLimits(workspace_max=(0.1, 1.0, 1.0), workspace_min=(-1.0,) * 3))
    loop.reach(0.05)
    loop.run()
    late = frame(loop.now)
    loop.now -= back * SECOND // 1000
    loop.controller.poll(loop.now, loop.now)
    assert loop.controller.push_frame(late) is PushResult.OLD_CLOCK
    loop.controller.push_ee_pose(late.stamp_ns, np.array([-0.5, 0.0, 0.0]), TOOL_DOWN)
    assert_hold(loop.controller.tick(loop.now, loop.now), Reason.NO_OBSERVATION)
    assert_hold(loop.step(), Reason.WORKSPACE)
    for _ in range(2 * back * SECOND // 1000 // PERIOD):
        loop.reach(0.05)
        loop.step()
        assert loop.controller.newest_ns == loop.now
    assert loop.outgoing.action is not None


@pytest.mark.parametrize('gap, goes_on', [(SECOND // 2, True), (SECOND // 2 + 1, False),
                                          (SECOND, False)])
def test_a_gap_between_the_frames_voids_the_plan(gap, goes_on):
    """Pins a bug: the first frame of a new episode was answered with the rest of the old chunk."""
    loop = Loop().run()
    loop.now += gap - PERIOD
    outgoing = loop.step()
    if goes_on:
        assert outgoing.action.step == 1
    else:
        assert_hold(outgoing, Reason.WAITING_FOR_CHUNK)
        assert loop.step().action.chunk.frame_stamps_ns == (loop.now - PERIOD,)


def test_in_lockstep_a_period_longer_than_max_age_is_no_gap():
    loop = lockstep(rate=1.0)
    for step in range(HORIZON):
        loop.see()
        assert (loop.answer() or loop.answer()).action.step == step
        loop.now += SECOND


def test_in_lockstep_a_bridge_that_starts_another_episode_gets_no_old_action():
    loop = lockstep()
    loop.see()
    assert (loop.answer() or loop.answer()).action.step == 0
    loop.now += SECOND
    loop.see()
    assert loop.answer() is None, 'another chunk is asked for'
    assert loop.answer().action.chunk.frame_stamps_ns == (loop.now,)


def test_a_stop_from_outside_is_zero_motion_and_voids_the_plan():
    loop = Loop().run()
    assert_hold(loop.controller.hold(Reason.SHUTDOWN), Reason.SHUTDOWN)
    assert_hold(loop.step(), Reason.WAITING_FOR_CHUNK)


def test_the_last_stop_drops_the_instruction_and_answers_who_waits():
    loop = Loop(latency=None)
    loop.controller.set_instruction('go')
    loop.step()
    assert loop.backend.busy
    answers = []
    loop.controller.inquiries.chunk('look', answers.append)
    assert_hold(loop.controller.stop(Reason.INACTIVE, 'the node ends'), Reason.INACTIVE, gripper=0)
    assert [one.error for one in answers] == ['the node ends']
    assert loop.controller.instruction == ''


def test_a_reset_forgets_frames_and_plan_and_keeps_the_gripper():
    """Pins a bug: the gripper became 0, so a hold did not keep it."""
    loop = Loop().run()
    loop.controller.reset_history()
    assert_hold(loop.step(camera=False), Reason.NO_OBSERVATION)
    loop.steps(2)
    assert len(loop.backend.requests[-1][1].frames) == 1
