# SPDX-License-Identifier: Apache-2.0
"""The control loop: every command is due and explained, and an instruction is what it needs."""

from dataclasses import replace
import itertools

from control_loop import GRIPPER, HORIZON, PERIOD, SECOND, Loop, assert_hold
import numpy as np
import pytest

from worldvla_ros.control.settings import (
    ControllerSettings,
    ControlSettings,
    ObservationSettings,
)
from worldvla_ros.datatypes import Frame
from worldvla_ros.errors import ConfigError, InstructionError
from worldvla_ros.policy.frame_history import PushResult
from worldvla_ros.safety.limits import Reason, SafetyLimits, Verdict

# --- the ordinary run -------------------------------------------------------------------------


def test_an_instruction_and_a_camera_are_all_it_needs():
    loop = Loop()
    assert_hold(loop.step(), Reason.NO_INSTRUCTION, gripper=0)
    loop.controller.set_instruction('  pick up\tthe  milk ')
    assert loop.controller.instruction == 'pick up the milk'
    assert_hold(loop.step(), Reason.WAITING_FOR_CHUNK, gripper=0)
    outgoing = loop.step()
    assert outgoing.verdict is Verdict.PASS and outgoing.reason is Reason.NONE
    assert outgoing.command.translation[0] == pytest.approx(0.05 * 0.001)
    assert loop.controller.halt is Reason.NONE
    assert loop.controller.latency.count == 1
    assert loop.controller.latency.p50 == pytest.approx(PERIOD / SECOND)


def test_every_command_from_a_chunk_names_chunk_step_frame_and_instruction():
    loop = Loop().run()
    seen = [loop.outgoing.action] + [one.action for one in loop.steps(8) if one.action]
    assert [(one.chunk_sequence, one.step) for one in seen] == [
        (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2), (3, 0)]
    assert {one.chunk.instruction for one in seen} == {'go'}
    for one in seen:
        _, observation = loop.backend.requests[one.chunk_sequence - 1]
        assert one.chunk.frame_stamps_ns == tuple(two.stamp_ns for two in observation.frames)
    assert [one.outcome.chunk_sequence for one in loop.arrivals] == [1, 2, 3]


def test_the_model_gets_two_frames_one_period_apart_and_never_an_old_one():
    loop = Loop().run(10)
    spans = [np.diff([one.stamp_ns for one in observation.frames]).tolist()
             for _, observation in loop.backend.requests]
    assert spans == [[], [PERIOD], [PERIOD]]  # the very first has no predecessor


def test_a_black_frame_neither_reaches_the_model_nor_keeps_it_going():
    loop = Loop().run()
    for _ in range(20):
        loop.now += PERIOD
        assert loop.controller.push_frame(
            Frame(np.zeros((4, 4, 3), np.uint8), loop.now)) is PushResult.ZERO_FILLED
        loop.controller.tick(loop.now, loop.now)
    assert loop.controller.halt is Reason.STALE_OBSERVATION
    assert all(one.image.any() for _, observation in loop.backend.requests
               for one in observation.frames)


def test_the_hint_comes_before_the_last_action_of_each_chunk_with_its_frame():
    loop = Loop().run()
    assert loop.backend.hints == []
    loop.step()
    assert loop.backend.hints == []
    loop.step()
    assert loop.backend.hints == [([loop.now], 'go')]
    loop.step()
    hinted, = loop.backend.hints
    assert hinted[0] == [loop.backend.requests[-1][1].frames[-2].stamp_ns]


@pytest.mark.parametrize('history_length', [1, 4])
def test_the_hint_has_all_older_frames_of_the_next_request(history_length):
    """Pins a bug: with longer histories than two the network computed one frame of them ahead."""
    loop = Loop(history_length=history_length).run()
    loop.steps(3 * HORIZON)
    number = len(loop.backend.requests)
    while len(loop.backend.requests) == number:
        loop.step()
    hinted, _ = loop.backend.hints[-1]
    asked = [frame.stamp_ns for frame in loop.backend.requests[-1][1].frames]
    assert len(asked) == history_length
    assert hinted == (asked[:-1] or [asked[0] - PERIOD])


def test_no_hint_is_given_where_it_is_switched_off():
    assert Loop(prepare=False).run(12).backend.hints == []


# --- async: inference while moving ------------------------------------------------------------


def test_async_reports_an_underrun_when_inference_is_slower_than_the_robot():
    loop = Loop(schedule='async', replan_steps=1).run()
    loop.backend.latency = None
    assert [one.reason for one in loop.steps(4)][-1] is Reason.UNDERRUN
    assert loop.controller.schedule.underruns > 0


def test_async_drops_as_many_steps_as_were_consumed_since_the_request():
    """Counted, never estimated from a latency; the request goes out when one is consumed."""
    loop = Loop(schedule='async', replan_steps=1, latency=1)
    loop.controller.set_instruction('go')
    actions = [one.action for one in loop.steps(30) if one.action is not None]
    for earlier, later in itertools.pairwise(actions):
        if later.chunk_sequence != earlier.chunk_sequence:
            assert later.step == loop.arrivals[later.chunk_sequence - 1].outcome.skipped
    assert max(one.chunk_sequence for one in actions) > 5
    assert {one.step for one in actions if one.chunk_sequence > 1} != {0, 1, 2}


def test_async_alone_infers_while_moving():
    """Pins a bug: it asked only when the chunk was over, and stopped for every inference."""
    loop = Loop(schedule='async').run()
    assert all(one.action for one in loop.steps(20))
    assert loop.controller.schedule.underruns == 0
    assert loop.controller.schedule.replans > 5


@pytest.mark.parametrize('schedule, replan_steps, horizon, steps', [
    ('sync', 0, 5, 5), ('sync', 3, 5, 3), ('sync', 0, 1, 1),
    ('async', 0, 6, 3), ('async', 0, 5, 2), ('async', 0, 1, 1), ('async', 4, 5, 4)])
def test_the_default_of_replan_steps_is_the_chunk_in_sync_and_half_of_it_in_async(
        schedule, replan_steps, horizon, steps):
    control = ControlSettings(schedule=schedule, replan_steps=replan_steps)
    assert control.steps_per_chunk(horizon) == steps


# --- the gripper in a hold --------------------------------------------------------------------


@pytest.mark.parametrize('limits', [SafetyLimits(gripper_min=0.5), SafetyLimits(gripper_max=-0.5)],
                         ids=['only closed', 'only open'])
def test_before_the_first_command_a_hold_leaves_the_gripper_as_it_is(limits):
    loop = Loop(limits=limits)
    assert_hold(loop.step(), Reason.NO_INSTRUCTION, gripper=0)
    loop.run()
    loop.controller.set_paused(True)
    assert_hold(loop.step(), Reason.PAUSED,
                gripper=min(max(GRIPPER, limits.gripper_min), limits.gripper_max))


def test_limits_that_are_narrowed_during_a_hold_move_the_gripper_with_the_next_motion_only():
    loop = Loop().run()
    loop.controller.set_paused(True)
    loop.step()
    limits = SafetyLimits(gripper_max=GRIPPER - 0.1)
    loop.controller.set_limits(limits)
    assert loop.controller.settings.limits is limits
    assert_hold(loop.step(), Reason.PAUSED, gripper=GRIPPER)
    loop.controller.set_paused(False)
    assert [one.command.gripper for one in loop.steps(2)] == [GRIPPER, limits.gripper_max]


# --- instructions -----------------------------------------------------------------------------


@pytest.mark.parametrize('text', ['x' * 10_000, 'x' * 501, 'go\x07', 'go\x1b[31m', 'go\udc80'])
def test_an_instruction_that_cannot_be_used_is_refused_and_holds(text):
    loop = Loop().run()
    with pytest.raises(InstructionError, match='an instruction'):
        loop.controller.set_instruction(text)
    assert_hold(loop.step(), Reason.NO_INSTRUCTION)
    assert loop.controller.instruction == ''
    loop.controller.set_instruction('go')
    assert_hold(loop.step(), Reason.WAITING_FOR_CHUNK)
    assert loop.step().verdict is Verdict.PASS


@pytest.mark.parametrize('text', ['', ' \t\n'])
def test_an_empty_instruction_stops(text):
    loop = Loop().run()
    loop.controller.set_instruction(text)
    assert_hold(loop.step(), Reason.NO_INSTRUCTION)


def test_the_longest_instruction_and_any_script_are_taken():
    controller = Loop().controller
    controller.set_instruction('x' * 500)
    controller.set_instruction('nimm die Äpfel und 牛奶')
    assert controller.instruction == 'nimm die Äpfel und 牛奶'


def test_the_same_instruction_again_starts_the_task_again():
    loop = Loop().run()
    loop.controller.set_instruction('go')
    assert_hold(loop.step(), Reason.WAITING_FOR_CHUNK)


# --- settings ---------------------------------------------------------------------------------


def test_settings_out_of_range_are_refused_where_they_are_made():
    with pytest.raises(ConfigError, match='rate'):
        replace(ControllerSettings(), control=ControlSettings(rate=0.0))


def test_a_rate_that_the_tolerance_of_the_frames_does_not_fit_is_refused_by_both_names():
    """Pins a bug: it was refused only when the model was loaded, and named no parameter."""
    with pytest.raises(ConfigError, match=r'obs\.tolerance \(0\.02 s\) .* control\.rate 30 Hz'):
        ControllerSettings(ControlSettings(rate=30.0))
    ControllerSettings(ControlSettings(rate=30.0), ObservationSettings(tolerance=0.016))
