# SPDX-License-Identifier: Apache-2.0
"""Frames reach the policy one control period apart, fresh, once, and never black."""

import itertools

from hypothesis import example, given
from hypothesis import strategies as st
import numpy as np
import pytest

from worldvla_ros.datatypes import Frame, Observation
from worldvla_ros.errors import ConfigError
from worldvla_ros.policy.frame_history import FrameHistory, PushResult, Stale, StaleReason

MS = 1_000_000
PERIOD = 50 * MS
TOLERANCE = 10 * MS
MAX_AGE = 200 * MS


def frame(stamp_ms, value=7):
    return Frame(np.full((4, 4, 3), value, np.uint8), round(stamp_ms * MS))


def history(length=2, **options):
    return FrameHistory(length, period_ns=PERIOD, tolerance_ns=TOLERANCE, max_age_ns=MAX_AGE,
                        **options)


def pushed(*stamps_ms, **options):
    frames = history(**options)
    for stamp_ms in stamps_ms:
        frames.push(frame(stamp_ms))
    return frames


def stamps_ms(observation):
    return [one.stamp_ns // MS for one in observation.frames]


@given(st.integers(1, 4), st.lists(st.integers(-1500, 3000), max_size=60), st.integers(-500, 3500))
def test_any_pushes_give_fresh_frames_at_the_spacing_or_none(length, pushes_ms, now_ms):
    frames = pushed(*pushes_ms, length=length)
    observation = frames.observation(now_ms * MS, 'go')
    if isinstance(observation, Stale):
        newest = frames.newest
        assert newest is None or abs(now_ms * MS - newest.stamp_ns) > MAX_AGE
        return
    stamps = [one.stamp_ns for one in observation.frames]
    assert abs(now_ms * MS - stamps[-1]) <= MAX_AGE
    assert 1 <= len(stamps) <= length
    assert all(earlier < later for earlier, later in itertools.pairwise(stamps))
    for periods_back, stamp in enumerate(reversed(stamps)):
        assert abs(stamps[-1] - periods_back * PERIOD - stamp) <= TOLERANCE
    assert {stamp // MS for stamp in stamps} <= set(pushes_ms)


@given(st.integers(1, 4), st.lists(st.integers(1, 80), min_size=1, max_size=60))
@example(2, [1, 60])
@example(3, [1, 55, 55])
def test_forgetting_never_changes_the_choice(length, gaps_ms):
    stamps = np.cumsum(gaps_ms).tolist()
    observation = pushed(*stamps, length=length).observation(stamps[-1] * MS, 'go')
    expected = [stamps[-1]]
    for periods_back in range(1, length):
        target = stamps[-1] - 50 * periods_back
        nearest = min(stamps, key=lambda stamp, target=target: abs(stamp - target))
        if abs(nearest - target) > 10:
            break
        expected.insert(0, nearest)
    assert stamps_ms(observation) == expected


@pytest.mark.parametrize(('length', 'kept'), [(1, 1), (2, 61), (3, 111), (4, 161)])
def test_only_the_span_that_can_be_needed_is_kept(length, kept):
    assert len(pushed(*range(1000), length=length)) == kept  # one each millisecond


def test_the_previous_frame_is_the_one_closest_to_one_period_before():
    observation = pushed(0, 33, 41, 52, 66, 100).observation(110 * MS, 'go')
    assert stamps_ms(observation) == [52, 100]
    assert observation.instruction == 'go'


def test_a_fast_camera_is_thinned_to_the_control_period():
    observation = pushed(*range(0, 500, 10), length=3).observation(495 * MS, 'go')
    assert stamps_ms(observation) == [390, 440, 490]


def test_the_first_frame_of_an_episode_comes_alone():
    assert stamps_ms(pushed(100).observation(100 * MS, 'go')) == [100]


def test_a_gap_ends_the_run_and_no_frame_is_shown_twice():
    assert stamps_ms(pushed(0, 100, 150, length=4).observation(150 * MS, 'go')) == [100, 150]
    assert stamps_ms(pushed(0, 75, length=2).observation(75 * MS, 'go')) == [75]


def test_without_a_frame_there_is_no_observation():
    assert history().observation(0, 'go') == Stale(StaleReason.NO_FRAME, None)


def test_a_frame_is_used_up_to_max_age_and_not_longer():
    frames = pushed(100)
    assert isinstance(frames.observation(300 * MS, 'go'), Observation)
    assert frames.observation(300 * MS + 1, 'go') == Stale(StaleReason.TOO_OLD, MAX_AGE + 1)


def test_a_frame_from_the_future_is_a_clock_error():
    frames = pushed(1000)
    assert isinstance(frames.observation(995 * MS, 'go'), Observation)
    assert frames.observation(0, 'go') == Stale(StaleReason.CLOCK, -1000 * MS)
    assert frames.age_ns(0) == -1000 * MS


def test_late_and_repeated_frames_are_dropped_with_a_reason():
    frames = pushed(100)
    assert frames.push(frame(100)) is PushResult.DUPLICATE
    assert frames.push(frame(60)) is PushResult.OUT_OF_ORDER
    assert frames.push(frame(150)) is PushResult.ACCEPTED
    assert frames.newest.stamp_ns == 150 * MS


def test_a_jump_back_clears_the_history():
    frames = pushed(5000, 5050)
    assert frames.push(frame(0)) is PushResult.ACCEPTED_AFTER_CLOCK_RESET
    assert stamps_ms(frames.observation(0, 'go')) == [0]
    assert len(frames) == 1


def test_a_black_frame_is_refused_and_a_dark_one_is_not():
    frames = history()
    assert frames.push(frame(0, value=0)) is PushResult.ZERO_FILLED
    assert frames.newest is None
    dark = np.zeros((64, 64, 3), np.uint8)
    dark[63, 1, 2] = 1
    assert frames.push(Frame(dark, 50 * MS)) is PushResult.ACCEPTED


def test_a_camera_is_frozen_after_so_many_identical_pictures():
    frames = pushed(*range(0, 200, 50), frozen_after=4)
    assert not frames.frozen
    frames.push(frame(200))
    assert frames.frozen
    frames.push(frame(250, value=8))
    assert not frames.frozen


def test_one_changed_pixel_is_enough_to_be_alive():
    frames = history(frozen_after=1)
    picture = np.full((64, 64, 3), 9, np.uint8)
    frames.push(Frame(picture, 0))
    picture = picture.copy()
    picture[33, 7, 1] = 10
    frames.push(Frame(picture, PERIOD))
    assert not frames.frozen
    frames.push(Frame(picture.copy(), 2 * PERIOD))
    assert frames.frozen


def test_a_still_robot_does_not_freeze_the_camera():
    frames = history(frozen_after=3)
    for step in range(20):
        frames.push(frame(50 * step), moving=False)
    assert not frames.frozen


def test_a_frozen_camera_stays_frozen_while_the_robot_holds_because_of_it():
    frames = pushed(*range(0, 250, 50), frozen_after=4)
    frames.push(frame(250), moving=False)
    assert frames.frozen
    frames.clear()
    assert not frames.frozen
    assert frames.newest is None


def test_by_default_one_second_of_identical_pictures_is_frozen():
    assert not pushed(*range(0, 1000, 50)).frozen
    assert pushed(*range(0, 1050, 50)).frozen


@pytest.mark.parametrize('options', [
    {'length': 0}, {'period_ns': 0}, {'tolerance_ns': 25 * MS}, {'tolerance_ns': -1},
    {'max_age_ns': -1}, {'frozen_after': 0}, {'reset_jump_ns': -1}])
def test_impossible_settings_are_refused(options):
    valid = {'length': 2, 'period_ns': PERIOD, 'tolerance_ns': TOLERANCE, 'max_age_ns': MAX_AGE}
    with pytest.raises(ConfigError, match=next(iter(options))):
        FrameHistory(**{**valid, **options})
