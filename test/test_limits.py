# SPDX-License-Identifier: Apache-2.0
"""The safety stage: finite, inside the limits, idempotent, honest about what it did."""

import math
from pathlib import Path
import re

from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
import numpy as np
import pytest

from worldvla_ros.errors import ConfigError
from worldvla_ros.safety.command import ActionScale, Command
from worldvla_ros.safety.limits import (
    REASON_TEXT,
    Reason,
    SafetyDecision,
    SafetyLimits,
    Verdict,
    apply_limits,
)

ROUNDING = 1e-11
DELTA_ACTION_MSG = Path(__file__).parents[1] / 'msg' / 'DeltaAction.msg'

ANYTHING = st.floats(allow_nan=True, allow_infinity=True)
SENSIBLE = st.floats(-0.3, 0.3)


def commands(elements):
    vector = arrays(np.float64, 3, elements=elements)
    return st.builds(Command, vector, vector, elements)


POSITIONS = arrays(np.float64, 3, elements=st.floats(-1, 1))
LIMITS = st.builds(
    SafetyLimits, max_translation=st.floats(0, 0.2), max_rotation=st.floats(0, 0.2),
    max_translation_change=st.floats(0.001, 0.2), max_rotation_change=st.floats(0.001, 0.2),
    gripper_min=st.floats(-1, -0.5), gripper_max=st.floats(0.5, 1),
    workspace_min=st.tuples(*[st.sampled_from([-math.inf, -0.5, -0.1])] * 3),
    workspace_max=st.tuples(*[st.sampled_from([math.inf, 0.5, 0.1])] * 3))
FRACTIONS = arrays(np.float64, 7, elements=st.floats(0, 1))
WIDE = SafetyLimits()
BOX = SafetyLimits(workspace_min=(-0.5, -0.5, 0.0), workspace_max=(0.5, 0.5, 1.0))
REST = Command.hold(-1.0)


def command(translation=(0, 0, 0), rotation_vector=(0, 0, 0), gripper=-1.0):
    return Command(translation, rotation_vector, gripper)


def same(one, other):
    return (np.array_equal(one.translation, other.translation)
            and np.array_equal(one.rotation_vector, other.rotation_vector)
            and one.gripper == other.gripper)


@given(commands(ANYTHING | SENSIBLE), commands(ANYTHING | SENSIBLE), POSITIONS, LIMITS)
def test_output_is_finite_and_inside_the_limits(wanted, previous, position, limits):
    decision = apply_limits(wanted, previous, position, limits)
    sent = decision.command
    assert sent.is_finite
    assert np.abs(sent.translation).max() <= limits.max_translation
    assert np.abs(sent.rotation_vector).max() <= limits.max_rotation
    if decision.verdict is Verdict.HOLD:
        assert sent.gripper == (previous.gripper if math.isfinite(previous.gripper) else 0)
    else:
        assert limits.gripper_min <= sent.gripper <= limits.gripper_max
    after = position + sent.translation
    low = np.minimum(limits.workspace_min, position)
    high = np.maximum(limits.workspace_max, position)
    assert (after >= low - ROUNDING).all() and (after <= high + ROUNDING).all()


@given(commands(ANYTHING | SENSIBLE), commands(ANYTHING | SENSIBLE), POSITIONS, LIMITS)
def test_limiting_twice_changes_nothing(wanted, previous, position, limits):
    once = apply_limits(wanted, previous, position, limits)
    assume(once.verdict is not Verdict.HOLD)  # it keeps the gripper, inside the limits or not
    twice = apply_limits(once.command, previous, position, limits)
    assert same(twice.command, once.command)
    assert twice.verdict is Verdict.PASS


def inside(fractions, position, limits):
    """Map (7,) fractions of [0, 1] to a command inside size, walls and gripper range."""
    low = np.maximum(-limits.max_translation, np.subtract(limits.workspace_min, position))
    high = np.minimum(limits.max_translation, np.subtract(limits.workspace_max, position))
    translation = np.clip(low + fractions[:3] * (high - low), low, high)
    turn = limits.max_rotation
    span = limits.gripper_max - limits.gripper_min
    return Command(translation, np.clip(turn * (2 * fractions[3:6] - 1), -turn, turn),
                   min(limits.gripper_min + fractions[6] * span, limits.gripper_max))


def towards(start, goal, change):
    """Go from start to goal, but not further than change on any axis."""
    largest = np.abs(goal - start).max()
    if largest <= change:
        return goal
    reached = start + (goal - start) * (change / largest)
    return np.clip(reached, np.minimum(start, goal), np.maximum(start, goal))


@given(FRACTIONS, FRACTIONS, POSITIONS, LIMITS)
def test_a_command_inside_the_limits_passes_unchanged(first, second, position, limits):
    position = np.clip(position, limits.workspace_min, limits.workspace_max)
    previous = inside(first, position, limits)
    goal = inside(second, position, limits)
    wanted = Command(
        towards(previous.translation, goal.translation, limits.max_translation_change),
        towards(previous.rotation_vector, goal.rotation_vector, limits.max_rotation_change),
        goal.gripper)
    decision = apply_limits(wanted, previous, position, limits)
    assert decision.verdict is Verdict.PASS
    assert decision.reasons == () and decision.reason is Reason.NONE
    assert same(decision.command, wanted)


@given(commands(SENSIBLE), commands(SENSIBLE), LIMITS)
def test_without_walls_a_moving_command_never_changes_faster_than_the_rate(
        wanted, previous, limits):
    free = SafetyLimits(limits.max_translation, limits.max_rotation,
                        limits.max_translation_change, limits.max_rotation_change)
    previous = apply_limits(previous, previous, None, free).command
    sent = apply_limits(wanted, previous, None, free).command
    if sent.translation.any():
        change = np.abs(sent.translation - previous.translation).max()
        assert change <= free.max_translation_change + ROUNDING
    if sent.rotation_vector.any():
        change = np.abs(sent.rotation_vector - previous.rotation_vector).max()
        assert change <= free.max_rotation_change + ROUNDING


@given(commands(SENSIBLE))
def test_a_vector_that_is_too_long_keeps_its_direction(wanted):
    limits = SafetyLimits(max_translation=0.01, max_rotation=0.01)
    sent = apply_limits(wanted, wanted, None, limits).command
    for before, after in ((wanted.translation, sent.translation),
                          (wanted.rotation_vector, sent.rotation_vector)):
        assert np.abs(np.cross(before, after)).max() <= ROUNDING
        assert before @ after >= 0
        assert after.any() == before.any()


@given(arrays(np.float32, 7, elements=st.floats(-1, 1, width=32)), st.integers(0, 99))
def test_every_action_of_the_controller_range_passes_the_default_limits(action, seed):
    previous = np.random.default_rng(seed).choice([-1.0, 1.0], 7)
    wanted = Command.from_controller_input(action, ActionScale())
    decision = apply_limits(
        wanted, Command.from_controller_input(previous, ActionScale()), None, WIDE)
    assert decision.verdict is Verdict.PASS
    np.testing.assert_allclose(
        decision.command.to_controller_input(ActionScale()), action, atol=1e-12)


@given(st.integers(0, 6), st.sampled_from([math.nan, math.inf, -math.inf]))
def test_what_is_not_finite_becomes_zero_motion_with_the_old_gripper(index, value):
    action = np.full(7, 0.5)
    action[index] = value
    decision = apply_limits(Command.from_controller_input(action, ActionScale()),
                            command((0.05, 0, 0), gripper=0.3), None, WIDE)
    assert decision.verdict is Verdict.HOLD and decision.reason is Reason.NOT_FINITE
    assert decision.command.is_zero_motion and decision.command.gripper == 0.3


def test_a_long_translation_is_scaled_as_a_vector():
    decision = apply_limits(command((0.2, 0.1, 0.0)), REST, None, WIDE)
    assert decision.verdict is Verdict.LIMITED and decision.reasons == (Reason.OUT_OF_RANGE,)
    np.testing.assert_allclose(decision.command.translation, (0.05, 0.025, 0.0))


def test_a_gripper_out_of_range_is_clipped_and_said():
    decision = apply_limits(command(gripper=1.5), REST, None, WIDE)
    assert decision.command.gripper == 1.0
    assert decision.reasons == (Reason.OUT_OF_RANGE,)


def test_a_fast_change_goes_part_of_the_way():
    limits = SafetyLimits(max_translation_change=0.01)
    decision = apply_limits(command((0.04, 0.02, 0)), REST, None, limits)
    assert decision.reasons == (Reason.RATE,)
    np.testing.assert_allclose(decision.command.translation, (0.01, 0.005, 0))


def test_stopping_is_never_too_fast():
    limits = SafetyLimits(max_translation_change=0.001, max_rotation_change=0.001)
    decision = apply_limits(REST, command((0.05, 0, 0), (0.5, 0, 0)), None, limits)
    assert decision.verdict is Verdict.PASS and decision.command.is_zero_motion


def test_the_arm_slides_along_a_wall():
    decision = apply_limits(command((0.03, 0.03, 0)), REST, np.array([0.49, 0, 0.5]), BOX)
    assert decision.reasons == (Reason.WORKSPACE,)
    np.testing.assert_allclose(decision.command.translation, (0.01, 0.03, 0))


def test_outside_the_box_only_the_way_back_is_open():
    outside = np.array([0.6, 0.0, 0.5])
    assert apply_limits(command((0.02, 0, 0)), REST, outside, BOX).command.is_zero_motion
    back = apply_limits(command((-0.02, 0, 0)), REST, outside, BOX)
    assert back.verdict is Verdict.PASS
    assert back.command.translation[0] == -0.02


def test_a_slow_change_does_not_carry_the_arm_through_the_wall():
    limits = SafetyLimits(max_translation_change=0.001, workspace_min=BOX.workspace_min,
                          workspace_max=BOX.workspace_max)
    decision = apply_limits(command((-0.05, 0.01, 0)), command((0.05, 0.01, 0)),
                            np.array([0.5, 0, 0.5]), limits)
    assert decision.command.translation[0] == pytest.approx(-0.001)


@pytest.mark.parametrize('position', [None, np.array([0.0, math.nan, 0.0])])
def test_a_box_without_a_position_holds(position):
    decision = apply_limits(command((0.01, 0, 0)), REST, position, BOX)
    assert decision.verdict is Verdict.HOLD and decision.reason is Reason.WORKSPACE
    assert decision.command.is_zero_motion


def test_several_reasons_are_all_given_the_wall_first():
    limits = SafetyLimits(max_translation_change=0.01, workspace_max=(0.5, 0.5, 1.0))
    decision = apply_limits(command((0.2, 0.2, 0), gripper=2.0), REST,
                            np.array([0.49, 0.0, 0.5]), limits)
    assert decision.reasons == (Reason.WORKSPACE, Reason.RATE, Reason.OUT_OF_RANGE)
    assert decision.reason is Reason.WORKSPACE


def test_a_hold_keeps_the_gripper_and_survives_a_broken_previous_command():
    held = SafetyDecision.hold(command((0.05, 0, 0), gripper=0.4), Reason.ESTOP)
    assert held.verdict is Verdict.HOLD and held.reasons == (Reason.ESTOP,)
    assert held.command.is_zero_motion and held.command.gripper == 0.4
    broken = SafetyDecision.hold(command(gripper=math.nan), Reason.ESTOP)
    assert broken.command.gripper == 0.0


@pytest.mark.parametrize('limits, gripper', [
    (SafetyLimits(gripper_min=0.5), 0.0), (SafetyLimits(gripper_max=-0.5), 0.0),
    (SafetyLimits(gripper_max=0.5), 0.9)], ids=['only closed', 'only open', 'narrowed'])
def test_what_is_not_finite_moves_no_gripper_whatever_its_limits(limits, gripper):
    """Pins a bug: a hold cut the kept gripper to the limits, which opened or closed it."""
    decision = apply_limits(command((math.nan, 0, 0)), Command.hold(gripper), None, limits)
    assert decision.verdict is Verdict.HOLD and decision.command.gripper == gripper


@pytest.mark.parametrize('limits, words', [
    ({'max_translation': -0.1}, 'max_translation'),
    ({'max_rotation': math.nan}, 'max_rotation'),
    ({'gripper_min': 0.5, 'gripper_max': -0.5}, 'gripper_min'),
    ({'workspace_min': (0.5, 0, 0), 'workspace_max': (0.5, 1, 1)}, 'workspace_min'),
    ({'workspace_min': (math.nan, 0.0, 0.0)}, 'workspace_min'),
])
def test_impossible_limits_are_refused(limits, words):
    with pytest.raises(ConfigError, match=words):
        SafetyLimits(**limits)


@pytest.mark.parametrize('prefix, enumeration', [('VERDICT', Verdict), ('REASON', Reason)])
def test_the_message_mirrors_the_enumeration(prefix, enumeration):
    constants = re.findall(rf'^uint8 {prefix}_(\w+) *= *(\d+)', DELTA_ACTION_MSG.read_text(), re.M)
    assert {name: int(value) for name, value in constants} == {
        member.name: member.value for member in enumeration}


def test_every_reason_has_a_text():
    assert set(REASON_TEXT) == set(Reason)
