# SPDX-License-Identifier: Apache-2.0
"""The state of the arm that belongs to a frame: the nearest by stamp, or none."""

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from worldvla_ros.errors import ConfigError
from worldvla_ros.policy.state_history import ArmHistory, StateHistory

MS = 1_000_000
stamps = st.lists(st.integers(0, 900), unique=True, max_size=40).map(sorted)


def history(stamps_ms, **options):
    states = StateHistory(**options)
    for stamp_ms in stamps_ms:
        assert states.push(stamp_ms * MS, stamp_ms)
    return states


@given(stamps, st.integers(-100, 1000), st.integers(0, 300))
def test_the_nearest_within_the_tolerance_is_found_wherever_it_lies(known, asked, tolerance):
    found = history(known).nearest(asked * MS, tolerance * MS)
    distances = [abs(one - asked) for one in known]
    if not distances or min(distances) > tolerance:
        assert found is None
    else:
        assert abs(found - asked) == min(distances)


def test_the_tolerance_is_the_last_distance_that_counts():
    assert history([0]).nearest(50 * MS, 50 * MS) == 0
    assert history([0]).nearest(50 * MS + 1, 50 * MS) is None


def test_only_so_many_are_kept():
    states = history(range(10), length=4)
    assert len(states) == 4
    assert states.nearest(0, 5 * MS) is None and states.nearest(0, 6 * MS) == 6


def test_a_late_or_repeated_state_is_dropped():
    states = history([100])
    assert not states.push(100 * MS, 'again') and not states.push(60 * MS, 'late')
    assert states.nearest(60 * MS, 40 * MS) == 100


def test_a_jump_back_of_the_clock_clears_the_history():
    states = history([5000, 5010])
    assert states.push(0, 'new')
    assert len(states) == 1 and states.nearest(5000 * MS, 4999 * MS) is None


def test_after_one_wild_stamp_it_recovers():
    states = history([100, 3_600_000])
    assert states.push(110 * MS, 'sane') and states.nearest(110 * MS, 0) == 'sane'


def test_pose_and_gripper_are_each_the_nearest_to_the_frame():
    arm = ArmHistory(20 * MS)
    down = Rotation.from_rotvec([np.pi, 0, 0])
    for stamp_ms in (80, 90, 100, 110):
        arm.push_pose(stamp_ms * MS, np.array([stamp_ms, 0, 0]), down)
    arm.push_fingers(85 * MS, np.array([0.01, -0.01]))
    np.testing.assert_allclose(arm.state(100 * MS), [100, 0, 0, 0, 0, 0, 0.02], atol=1e-12)
    assert arm.state(106 * MS) is None  # the gripper, the slower of the two, is too old
    arm.push_fingers(120 * MS, np.array([0.03, 0.03]))
    np.testing.assert_allclose(arm.state(106 * MS), [110, 0, 0, 0, 0, 0, 0.06], atol=1e-12)
    arm.clear()
    assert arm.state(106 * MS) is None


@pytest.mark.parametrize('make', [
    lambda: StateHistory(0), lambda: StateHistory(reset_jump_ns=-1), lambda: ArmHistory(-1)])
def test_impossible_settings_are_refused(make):
    with pytest.raises(ConfigError, match='at least'):
        make()
