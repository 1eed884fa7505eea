# SPDX-License-Identifier: Apache-2.0
"""Where the end effector is between two poses."""

import numpy as np
import pytest

from worldvla_ros.control.position_estimate import PositionEstimate

PERIOD = 50  # [ns]
ALWAYS = 10_000
STEP = np.array([1.0, 0.0, 0.0])


@pytest.fixture
def estimate():
    return PositionEstimate(0.5, PERIOD)


def test_without_a_pose_near_enough_the_position_is_not_known(estimate):
    assert estimate.at(0, ALWAYS) is None
    estimate.push(100, np.zeros(3))
    assert estimate.at(300, 200) is not None and estimate.at(301, 200) is None
    estimate.clear()
    assert estimate.at(100, ALWAYS) is None


def test_what_was_commanded_since_the_pose_counts_with_its_gain(estimate):
    estimate.push(100, np.array([2.0, 3.0, 4.0]))
    for sent_ns in (100, 150, 200):
        estimate.sent(sent_ns, STEP, ALWAYS)
    np.testing.assert_allclose(estimate.at(250, ALWAYS), [3.5, 3.0, 4.0])


@pytest.mark.parametrize('stamp, moved', [(100, 0.5), (125, 0.25), (150, 0.0), (90, 0.5)])
def test_a_pose_within_the_period_of_a_command_has_seen_a_part_of_it(estimate, stamp, moved):
    estimate.sent(100, STEP, ALWAYS)
    estimate.push(stamp, np.zeros(3))
    np.testing.assert_allclose(estimate.at(150, ALWAYS), [moved, 0.0, 0.0])


def test_commands_that_no_pose_needs_are_forgotten(estimate):
    for sent_ns in range(0, 100 * PERIOD, PERIOD):
        estimate.sent(sent_ns, STEP, 4 * PERIOD)
    assert len(estimate._sent) == 5


def test_commands_from_before_the_clock_jumped_back_do_not_count(estimate):
    estimate.sent(1000, STEP, ALWAYS)
    estimate.sent(10, STEP, ALWAYS)
    estimate.push(10, np.zeros(3))
    np.testing.assert_allclose(estimate.at(60, ALWAYS), [0.5, 0.0, 0.0])
