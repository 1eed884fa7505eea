# SPDX-License-Identifier: Apache-2.0
"""Commands in SI units and their conversion to and from controller input."""

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
import numpy as np
import pytest

from worldvla_ros.errors import ConfigError, InferenceError
from worldvla_ros.safety.command import ActionScale, Command

CLOSE = {'rtol': 1e-12, 'atol': 1e-300}
ACTIONS = arrays(np.float64, 7, elements=st.floats(-10, 10))
SCALES = st.builds(ActionScale, st.floats(1e-3, 1.0), st.floats(1e-3, 3.0))


@given(ACTIONS, SCALES)
def test_to_controller_input_is_the_inverse_of_from_controller_input(action, scale):
    command = Command.from_controller_input(action, scale)
    np.testing.assert_allclose(command.to_controller_input(scale), action, **CLOSE)


@given(ACTIONS, SCALES)
def test_from_controller_input_is_the_inverse_of_to_controller_input(values, scale):
    command = Command(values[:3], values[3:6], values[6])
    back = Command.from_controller_input(command.to_controller_input(scale), scale)
    np.testing.assert_allclose(back.translation, command.translation, **CLOSE)
    np.testing.assert_allclose(back.rotation_vector, command.rotation_vector, **CLOSE)
    assert back.gripper == command.gripper


def test_full_controller_input_is_five_centimetres_and_half_a_radian():
    command = Command.from_controller_input(np.ones(7, np.float32), ActionScale())
    assert command.translation.tolist() == [0.05] * 3
    assert command.rotation_vector.tolist() == [0.5] * 3
    assert command.gripper == 1.0


def test_input_out_of_range_is_not_clipped_here():
    command = Command.from_controller_input(np.full(7, -4.0), ActionScale())
    assert command.translation.tolist() == [-0.2] * 3
    assert command.gripper == -4.0


def test_nan_passes_and_is_seen():
    action = np.zeros(7)
    assert Command.from_controller_input(action, ActionScale()).is_finite
    for index in range(7):
        bad = action.copy()
        bad[index] = np.nan
        assert not Command.from_controller_input(bad, ActionScale()).is_finite


def test_hold_is_zero_motion_with_the_gripper():
    hold = Command.hold(0.7)
    assert hold.is_zero_motion and hold.gripper == 0.7
    assert not Command((0, 0, 1e-9), (0, 0, 0), 0.7).is_zero_motion


def test_a_command_keeps_its_own_copy():
    translation = np.zeros(3)
    command = Command(translation, np.zeros(3), 0.0)
    translation[0] = 1.0
    assert command.is_zero_motion
    with pytest.raises(ValueError, match='read-only'):
        command.translation[0] = 1.0


def test_other_shapes_are_refused():
    with pytest.raises(InferenceError, match=r'\(7,\)'):
        Command.from_controller_input(np.zeros(6), ActionScale())
    with pytest.raises(InferenceError, match=r'\(3,\)'):
        Command(np.zeros(2), np.zeros(3), 0.0)


@pytest.mark.parametrize('scale', [{'translation': 0.0}, {'rotation': -0.5}])
def test_a_scale_without_an_inverse_is_refused(scale):
    with pytest.raises(ConfigError, match=next(iter(scale))):
        ActionScale(**scale)
