# SPDX-License-Identifier: Apache-2.0
"""Lockstep: each frame gets one command, the same whatever the timing."""

from control_loop import PERIOD, assert_hold, chunk_actions, frame, lockstep
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
from obstacles import lose_worker, meet_conflict, pause, press_estop
import pytest

from worldvla_ros.policy.frame_history import PushResult
from worldvla_ros.safety.limits import Reason


def sent(outgoing):
    """Everything of a command that a receiver can see."""
    action = outgoing.action
    return (outgoing.command.translation.tolist(), outgoing.command.rotation_vector.tolist(),
            outgoing.command.gripper, outgoing.verdict, outgoing.reason, action.chunk_sequence,
            action.step, action.chunk.frame_stamps_ns, action.chunk.instruction)


def answers_to(latencies, idle_calls, poll_calls, frames=12):
    """Run a simulator that waits for its command; the noise must not matter."""
    loop = lockstep()
    loop.backend.answers = {2: chunk_actions(999), 3: chunk_actions(3) * np.nan}
    answers = []
    for index in range(frames):
        loop.backend.latency = latencies[index % len(latencies)]
        loop.see()
        outgoing = loop.answer()
        for attempt in range(60):
            if outgoing is not None:
                break
            for _ in range(idle_calls[attempt % len(idle_calls)]):
                assert_hold(loop.controller.idle(loop.now, loop.now),
                            Reason.WAITING_FOR_CHUNK, loop.controller._previous.gripper)
            for _ in range(poll_calls[attempt % len(poll_calls)]):
                loop.controller.poll(loop.now, loop.now)
            outgoing = loop.answer()
        answers.append(sent(outgoing))
        for _ in range(idle_calls[0]):
            loop.controller.idle(loop.now, loop.now)
        assert loop.answer() is None
        loop.now += PERIOD
    return answers


@settings(max_examples=30)
@given(latencies=st.lists(st.integers(0, 6), min_size=1, max_size=4),
       idle_calls=st.lists(st.integers(0, 3), min_size=1, max_size=4),
       poll_calls=st.lists(st.integers(0, 3), min_size=1, max_size=4))
def test_lockstep_does_not_depend_on_latency_nor_on_how_often_it_is_looked_after(
        latencies, idle_calls, poll_calls):
    assert answers_to(latencies, idle_calls, poll_calls) == answers_to([0], [0], [0])


def test_a_frame_is_answered_once_however_often_one_asks():
    """Pins a bug: every later call sent the command again, and the simulator ran ahead."""
    loop = lockstep()
    assert loop.answer() is None  # no frame
    loop.see()
    assert loop.answer() is None  # inference runs
    outgoing = loop.answer()
    assert outgoing.action.step == 0
    assert [loop.answer() for _ in range(3)] == [None, None, None]
    assert loop.controller.steps == 1


def test_a_frame_that_comes_again_gets_the_same_command_again():
    loop = lockstep()
    loop.see()
    loop.answer()
    outgoing = loop.answer()
    for _ in range(3):
        assert loop.see() is PushResult.DUPLICATE
        assert loop.answer() is outgoing
        assert loop.answer() is None
    assert loop.controller.steps == 1


@pytest.mark.parametrize('stop', [press_estop, pause, meet_conflict, lose_worker])
def test_a_frame_that_comes_again_after_a_stop_gets_no_motion(stop):
    """Pins a bug: the remembered command went out although the e-stop was pressed."""
    loop = lockstep()
    loop.see()
    loop.answer()
    assert loop.answer() is not None
    stop(loop)
    loop.see()
    assert loop.answer() is None
    assert loop.controller.halt is not Reason.NONE


def test_a_frame_that_comes_again_under_a_new_instruction_gets_a_new_command():
    loop = lockstep()
    loop.see()
    loop.answer()
    assert loop.answer().action.chunk.instruction == 'go'
    loop.controller.set_instruction('stop it')
    assert [loop.answer(), loop.answer()] == [None, None]  # that frame has its command
    loop.see()
    assert loop.answer() is None
    assert loop.answer().action.chunk.instruction == 'stop it'


def test_a_late_frame_asks_for_nothing():
    loop = lockstep()
    loop.see()
    loop.answer()
    loop.answer()
    assert loop.controller.push_frame(frame(loop.now - 1)) is PushResult.OUT_OF_ORDER
    assert loop.answer() is None


def test_lockstep_answers_although_the_node_clock_is_behind_the_frames():
    loop = lockstep()
    loop.see()
    assert loop.controller.answer(0, loop.now) is None
    assert loop.controller.answer(0, loop.now).action is not None


def test_idle_explains_a_failed_inference():
    loop = lockstep()
    loop.backend.answers[1] = 'out of memory'
    loop.see()
    loop.answer()
    assert_hold(loop.controller.idle(loop.now, loop.now), Reason.INFERENCE_FAILED, gripper=0)
