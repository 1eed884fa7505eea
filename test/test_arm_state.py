# SPDX-License-Identifier: Apache-2.0
"""The state of the arm has no jumps where arms work, and observations refuse what is none."""

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from worldvla_ros.arm_state import arm_state
from worldvla_ros.datatypes import Frame, Observation
from worldvla_ros.errors import StateError

PLACE = (0.5, -0.1, 0.2)
FINGERS = (0.04, -0.04)
DOWN = Rotation.from_rotvec([np.pi, 0, 0])
FRAME = Frame(np.ones((4, 4, 3), np.uint8), 0)


def test_a_tool_that_points_down_has_no_rotation():
    np.testing.assert_allclose(arm_state(PLACE, DOWN, FINGERS), [*PLACE, 0, 0, 0, 0.08],
                               atol=1e-12)


@given(st.floats(-3, 3))
def test_a_turn_about_the_base_s_vertical_is_that_turn(yaw):
    turned = Rotation.from_rotvec([0, 0, yaw]) * DOWN
    np.testing.assert_allclose(arm_state(PLACE, turned, FINGERS)[3:6], [0, 0, yaw], atol=1e-9)


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=3))
def test_small_tilts_are_small_and_the_sign_of_a_quaternion_does_not_matter(tilt):
    quaternion = (Rotation.from_rotvec(tilt) * DOWN).as_quat()
    states = [arm_state(PLACE, Rotation.from_quat(sign * quaternion), FINGERS)
              for sign in (1, -1)]
    np.testing.assert_allclose(states[0][3:6], tilt, atol=1e-9)
    np.testing.assert_allclose(*states, atol=1e-9)


@pytest.mark.parametrize('fingers', [(0.04, -0.04), (0.04, 0.04), (-0.04, 0.04), (0.08,)])
def test_the_opening_counts_whichever_way_the_fingers_count(fingers):
    assert arm_state(PLACE, DOWN, fingers)[6] == pytest.approx(0.08)


def test_many_steps_at_once_are_each_of_them_alone():
    rng = np.random.default_rng(0)
    places, fingers = rng.normal(size=(5, 3)), rng.normal(size=(5, 2))
    turns = Rotation.random(5, random_state=0)
    states = arm_state(places, turns, fingers)
    assert states.shape == (5, 7)
    for index in range(5):
        np.testing.assert_allclose(
            states[index], arm_state(places[index], turns[index], fingers[index]))


def test_an_observation_keeps_a_state_that_cannot_change():
    state = np.arange(7.0)
    observation = Observation((FRAME,), 'go', state)
    np.testing.assert_array_equal(observation.state, state)
    with pytest.raises(ValueError, match='read-only'):
        observation.state[0] = 1
    assert Observation((FRAME,), 'go').state is None


@pytest.mark.parametrize('state', [np.zeros(6), np.zeros((1, 7)), np.full(7, np.nan),
                                   np.array([0, 0, 0, 0, 0, 0, np.inf])])
def test_an_observation_refuses_what_is_no_state(state):
    with pytest.raises(StateError, match=r'\(7,\) finite'):
        Observation((FRAME,), 'go', state)
