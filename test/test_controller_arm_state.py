# SPDX-License-Identifier: Apache-2.0
"""The loop of a policy that reads the state of the arm: no state, no motion."""

import itertools

from control_loop import HORIZON, PERIOD, SECOND, Loop, assert_hold, lockstep
import numpy as np
import pytest

from worldvla_ros.safety.limits import Reason


def state_at(stamp_ns):
    return [*[stamp_ns / SECOND] * 3, 0, 0, 0, 0.08]


def states_seen(loop):
    return [observation.state for _, observation in loop.backend.requests]


def test_a_policy_that_does_not_read_the_state_gets_none():
    loop = Loop().run(6)
    assert not loop.controller.sensing.lacks_state and states_seen(loop) == [None, None]


@pytest.mark.parametrize('missing', [{'pose': False}, {'fingers': False}])
def test_without_the_state_it_holds_and_says_so_and_then_it_runs(missing):
    loop = Loop(reads_state=True)
    loop.controller.set_instruction('go')
    loop.now += PERIOD
    loop.feel(**missing)
    loop.now -= PERIOD
    for _ in range(3):
        assert_hold(loop.step(), Reason.NO_STATE, gripper=0)
    assert loop.controller.halt is Reason.NO_STATE and not loop.backend.requests
    loop.now += PERIOD
    loop.see()
    loop.feel()
    assert_hold(loop.controller.tick(loop.now, loop.now), Reason.WAITING_FOR_CHUNK, gripper=0)
    np.testing.assert_allclose(states_seen(loop), [state_at(loop.now)], atol=1e-9)


@pytest.mark.parametrize('rate', [30, 100, 1000])
def test_realtime_never_stops_for_want_of_the_state_at_usual_rates(rate):
    loop = Loop(reads_state=True)
    loop.controller.set_instruction('go')
    for outgoing in loop.drift(loop.feel, rate):
        assert outgoing.reason is not Reason.NO_STATE
    for _, observation in loop.backend.requests:
        assert abs(observation.state[0] * SECOND - observation.stamp_ns) <= SECOND / rate


@pytest.mark.parametrize('schedule', ['sync', 'async'])
def test_an_arm_that_falls_silent_holds_and_afterwards_only_a_fresh_chunk_moves(schedule):
    loop = Loop(reads_state=True, schedule=schedule)
    loop.controller.set_instruction('go')

    def step(arm):
        loop.now += PERIOD
        loop.see()
        if arm:
            loop.feel()
        return loop.controller.tick(loop.now, loop.now)
    assert [step(arm=True) for _ in range(2)][-1].action is not None
    assert step(arm=False).action is not None  # the last state is one period old
    for _ in range(3):
        assert_hold(step(arm=False), Reason.NO_STATE)
        assert loop.controller.schedule.queue_depth == 0
    silent = loop.now
    assert_hold(step(arm=True), Reason.WAITING_FOR_CHUNK)
    assert step(arm=True).action.chunk.frame_stamps_ns[-1] > silent


def test_a_chunk_that_is_asked_for_without_a_state_is_refused_with_the_reason():
    loop = Loop(reads_state=True)
    results = []
    loop.see()
    loop.controller.inquiries.chunk('look', results.append)
    loop.controller.poll(loop.now, loop.now)
    assert 'no state of the arm' in results[0].error
    loop.feel()
    loop.controller.inquiries.chunk('look', results.append)
    loop.step(camera=False)
    loop.step(camera=False)
    assert results[1].chunk is not None and loop.backend.requests[0][1].state is not None


def test_a_reset_forgets_the_state_too():
    loop = Loop(reads_state=True)
    loop.controller.set_instruction('go')
    loop.feel()
    loop.controller.reset_history()
    loop.see()
    assert_hold(loop.controller.tick(loop.now, loop.now), Reason.NO_STATE, gripper=0)


@pytest.mark.parametrize('order', list(itertools.permutations(['see', 'pose', 'fingers'])))
def test_lockstep_answers_once_with_the_frame_s_own_state_in_whatever_order_topics_come(order):
    """Were a frame without its state an obstacle, it would void the chunk that it continues."""
    loop = lockstep(reads_state=True)
    events = {'see': loop.see, 'pose': lambda: loop.feel(fingers=False),
              'fingers': lambda: loop.feel(pose=False)}
    for step in range(2 * HORIZON):
        for name in order[:-1]:
            events[name]()
            assert loop.answer() is None
            loop.controller.idle(loop.now, loop.now)
        events[order[-1]]()
        outgoing = loop.answer() or loop.answer()  # the first asks for the chunk, if one is due
        assert outgoing.action.step == step % HORIZON
        assert [loop.answer() for _ in range(3)] == [None] * 3
        loop.feel()
        assert loop.answer() is None
        loop.now += PERIOD
    assert len(loop.backend.requests) == 2
    np.testing.assert_allclose(states_seen(loop), [
        state_at(loop.now - (2 * HORIZON - index) * PERIOD) for index in (0, HORIZON)], atol=1e-9)


def test_lockstep_repeats_its_answer_when_frame_and_state_come_again():
    loop = lockstep(reads_state=True)
    loop.see()
    loop.feel()
    outgoing = loop.answer() or loop.answer()
    for _ in range(2):
        loop.feel()
        assert loop.answer() is None
        loop.see()
        assert loop.answer() is outgoing


def test_lockstep_says_what_it_waits_for():
    loop = lockstep(reads_state=True)
    loop.see()
    loop.feel(PERIOD)  # of the frame before
    assert loop.answer() is None and loop.controller.halt is Reason.NO_STATE
    assert_hold(loop.controller.idle(loop.now, loop.now), Reason.NO_STATE, gripper=0)
