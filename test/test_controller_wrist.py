# SPDX-License-Identifier: Apache-2.0
"""The loop of a policy that reads the wrist camera: no picture of it, no motion."""

import itertools

from control_loop import HORIZON, PERIOD, SECOND, Loop, assert_hold, frame, lockstep
import numpy as np
import pytest

from worldvla_ros.control.settings import ObservationSettings
from worldvla_ros.policy.frame_history import PushResult
from worldvla_ros.safety.limits import Reason


def wrist_stamps(observation):
    """Return when each picture of the wrist camera was taken [ns], as `frame` writes it."""
    return [int(np.frombuffer(one.wrist.reshape(-1)[:8].tobytes(), np.int64)[0])
            for one in observation.frames]


def running(**options):
    loop = Loop(reads_wrist=True, **options)
    loop.controller.set_instruction('go')
    return loop


def step(loop, *, camera=True, wrist=True):
    """Let one period pass with these cameras and return the command that is due."""
    loop.now += PERIOD
    if wrist:
        loop.see_by_wrist()
    if camera:
        loop.see()
    return loop.controller.tick(loop.now, loop.now)


def test_a_policy_that_does_not_read_the_wrist_camera_gets_none():
    loop = Loop()
    loop.see_by_wrist()
    loop.run(6)
    assert all(one.wrist is None for _, seen in loop.backend.requests for one in seen.frames)
    assert loop.controller.wrist_fault(loop.now) is Reason.NONE


def test_without_the_wrist_camera_it_holds_and_says_so_and_then_it_runs():
    loop = running()
    for _ in range(3):
        assert_hold(step(loop, wrist=False), Reason.NO_WRIST_FRAME, gripper=0)
    assert loop.controller.halt is Reason.NO_WRIST_FRAME and not loop.backend.requests
    assert loop.controller.camera_fault(loop.now) is Reason.NONE
    assert loop.controller.wrist_fault(loop.now) is Reason.NO_WRIST_FRAME
    assert_hold(step(loop), Reason.WAITING_FOR_CHUNK, gripper=0)
    assert step(loop).action is not None
    assert loop.controller.wrist_fault(loop.now) is Reason.NONE


def test_each_frame_comes_with_what_the_wrist_camera_saw_then():
    loop = running()
    for _ in range(2 * HORIZON + 2):
        step(loop)
    first, second, *_ = (seen for _, seen in loop.backend.requests)
    assert len(first.frames) == 1 and len(second.frames) == 2
    for seen in (first, second):
        assert wrist_stamps(seen) == [one.stamp_ns for one in seen.frames]


def test_a_gap_of_the_wrist_camera_shortens_the_history():
    """As a gap of the other camera does: a frame without its twin was never trained on."""
    loop = running(obs=ObservationSettings(wrist_tolerance=0.02))
    loop.now += PERIOD
    loop.see()
    assert_hold(step(loop), Reason.WAITING_FOR_CHUNK, gripper=0)
    assert [len(seen.frames) for _, seen in loop.backend.requests] == [1]


@pytest.mark.parametrize('rate', [25, 30, 60])
def test_realtime_never_stops_for_want_of_the_wrist_camera_at_usual_rates(rate):
    loop = running()
    for outgoing in loop.drift(loop.see_by_wrist, rate):
        assert outgoing.reason is not Reason.NO_WRIST_FRAME
    for _, seen in loop.backend.requests:
        for stamp_ns, one in zip(wrist_stamps(seen), seen.frames, strict=True):
            assert abs(stamp_ns - one.stamp_ns) <= SECOND / rate


def test_a_third_person_camera_that_lags_within_its_age_loses_no_picture():
    loop = running(obs=ObservationSettings(max_age=0.5))
    lag = 8 * PERIOD
    for _ in range(40):
        loop.now += PERIOD
        loop.see_by_wrist()
        loop.controller.push_frame(frame(loop.now - lag))
        loop.controller.tick(loop.now, loop.now)
    assert loop.controller.halt is Reason.NONE and loop.controller.steps > 20
    seen = loop.backend.requests[-1][1]
    assert wrist_stamps(seen) == [one.stamp_ns for one in seen.frames] and len(seen.frames) == 2


def test_no_picture_older_than_the_age_reaches_the_model():
    """Within the tolerance of a frame that is fresh enough, it may be too old itself."""
    loop = running(obs=ObservationSettings(max_age=0.5, wrist_tolerance=0.2))
    loop.see_by_wrist(int(0.55 * SECOND))
    loop.controller.push_frame(frame(loop.now - int(0.45 * SECOND)))
    assert_hold(loop.controller.tick(loop.now, loop.now), Reason.NO_WRIST_FRAME, gripper=0)
    loop.see_by_wrist(int(0.46 * SECOND))
    assert_hold(loop.controller.tick(loop.now, loop.now), Reason.WAITING_FOR_CHUNK, gripper=0)


@pytest.mark.parametrize('schedule', ['sync', 'async'])
def test_a_wrist_camera_that_falls_silent_holds_and_then_only_a_fresh_chunk_moves(schedule):
    loop = running(schedule=schedule)
    assert [step(loop) for _ in range(2)][-1].action is not None
    assert step(loop, wrist=False).action is not None  # its last picture is one period old
    for _ in range(3):
        assert_hold(step(loop, wrist=False), Reason.NO_WRIST_FRAME)
        assert loop.controller.schedule.queue_depth == 0
    silent = loop.now
    assert_hold(step(loop), Reason.WAITING_FOR_CHUNK)
    assert step(loop).action.chunk.frame_stamps_ns[-1] > silent


def test_a_frozen_or_covered_wrist_camera_holds():
    loop = running(obs=ObservationSettings(frozen_after=3))
    held = []
    for _ in range(8):
        loop.now += PERIOD
        loop.see_by_wrist(value=7)
        loop.see()
        held.append(loop.controller.tick(loop.now, loop.now).reason)
    assert held[-1] is Reason.FROZEN_CAMERA and held[1] is Reason.NONE
    assert loop.controller.wrist_fault(loop.now) is Reason.FROZEN_CAMERA
    assert loop.controller.camera_fault(loop.now) is Reason.NONE
    black = frame(loop.now)
    black = type(black)(np.zeros_like(black.image), loop.now)
    assert loop.controller.push_wrist_frame(black) is PushResult.ZERO_FILLED


def test_a_reset_forgets_the_wrist_camera_too():
    loop = running()
    loop.see_by_wrist()
    loop.controller.reset_history()
    loop.see()
    assert_hold(loop.controller.tick(loop.now, loop.now), Reason.NO_WRIST_FRAME, gripper=0)


def test_a_clock_that_jumps_back_leaves_no_picture_of_the_time_before():
    loop = running()
    for _ in range(3):
        step(loop)
    loop.now -= 50 * SECOND
    assert_hold(step(loop, wrist=False), Reason.NO_WRIST_FRAME)
    step(loop)
    seen = loop.backend.requests[-1][1]
    assert wrist_stamps(seen) == [loop.now], 'and none twice'


def test_the_frame_that_is_computed_ahead_has_its_picture_of_the_wrist_camera():
    loop = running()
    hints = []
    loop.backend.prepare = lambda frames, instruction: hints.extend(frames)
    for _ in range(HORIZON + 2):
        step(loop)
    assert hints and all(one.wrist is not None for one in hints)


@pytest.mark.parametrize('order', list(itertools.permutations(['see', 'wrist', 'feel'])))
def test_lockstep_answers_once_with_the_frame_s_own_picture_in_whatever_order_topics_come(order):
    loop = lockstep(reads_state=True, reads_wrist=True)
    events = {'see': loop.see, 'wrist': loop.see_by_wrist, 'feel': loop.feel}
    for number in range(2 * HORIZON):
        for name in order[:-1]:
            events[name]()
            assert loop.answer() is None
            loop.controller.idle(loop.now, loop.now)
        events[order[-1]]()
        outgoing = loop.answer() or loop.answer()  # the first asks for the chunk, if one is due
        assert outgoing.action.step == number % HORIZON
        assert [loop.answer() for _ in range(3)] == [None] * 3
        loop.now += PERIOD
    assert len(loop.backend.requests) == 2
    for _, seen in loop.backend.requests:
        assert wrist_stamps(seen) == [one.stamp_ns for one in seen.frames]


def test_lockstep_says_what_it_waits_for():
    loop = lockstep(reads_wrist=True)
    loop.see()
    loop.see_by_wrist(PERIOD)  # of the frame before
    assert loop.answer() is None and loop.controller.halt is Reason.NO_WRIST_FRAME
    assert_hold(loop.controller.idle(loop.now, loop.now), Reason.NO_WRIST_FRAME, gripper=0)
