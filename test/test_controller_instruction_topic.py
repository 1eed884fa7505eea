# SPDX-License-Identifier: Apache-2.0
"""Texts on the instruction topic, whose publisher may repeat them, as `ros2 topic pub` does."""

from control_loop import Loop, assert_hold
from obstacles import press_estop
import pytest

from worldvla_ros.control.instruction import Heard
from worldvla_ros.safety.limits import Reason


class Topic(Loop):
    """A loop that follows what it hears."""

    def hear(self, text):
        heard = self.controller.hear(text, self.now)
        if heard is Heard.NEW:
            self.controller.set_instruction(text)
        return heard

    def wait(self):
        """Be silent for longer than one who repeats a text is."""
        self.steps(61)

    def reset_estop(self):
        self.estop.set(False, self.now)
        assert self.estop.reset(self.now)


@pytest.fixture
def loop():
    loop = Topic()
    assert loop.hear('go') is Heard.NEW
    loop.steps(2)
    return loop


def test_the_text_that_is_followed_changes_nothing(loop):
    """Pins a bug: a slow model never moved, because each repetition made its chunk void."""
    epoch = loop.controller.schedule.epoch
    for text in ('go', ' go\n', 'go'):
        assert loop.hear(text) is Heard.SAME
        assert loop.step().action is not None or loop.step().action is not None
    assert loop.controller.schedule.epoch == epoch


def test_another_text_and_an_empty_one_are_new(loop):
    assert loop.hear('come') is Heard.NEW and loop.hear('') is Heard.NEW
    assert loop.hear('come') is Heard.NEW and loop.hear('go') is Heard.NEW


@pytest.mark.parametrize('text', ['x' * 10_000, 'go\x07'])
def test_a_text_that_cannot_be_used_is_left_to_who_follows_it(loop, text):
    assert loop.controller.hear(text, loop.now) is Heard.NEW


@pytest.mark.parametrize('relief', ['', 'come'])
def test_a_text_that_came_while_the_estop_was_locked_starts_nothing_until_another_came(loop,
                                                                                     relief):
    """Pins a bug: 0.4 s after the reset the robot moved again, unasked."""
    press_estop(loop)
    assert loop.hear('go') is loop.hear('look') is Heard.LOCKED
    loop.reset_estop()
    for text in ('go', 'look', 'go'):
        assert loop.hear(text) is Heard.BARRED
        assert_hold(loop.step(), Reason.NO_INSTRUCTION)
    loop.wait()
    assert loop.hear('go') is Heard.BARRED
    assert loop.hear(relief) is Heard.NEW
    loop.wait()
    assert loop.hear('go') is Heard.NEW
    assert any(one.action for one in loop.steps(3))


def test_a_text_that_was_repeated_until_the_estop_starts_nothing_after_its_reset(loop):
    assert loop.hear('go') is Heard.SAME
    press_estop(loop)
    loop.reset_estop()
    assert loop.hear('go') is Heard.BARRED
    loop.wait()
    assert loop.hear('') is Heard.NEW and loop.hear('go') is Heard.NEW


def test_a_text_that_was_given_once_may_be_given_again_after_the_reset(loop):
    loop.wait()
    assert loop.hear('come') is Heard.NEW and loop.hear('come') is Heard.SAME
    assert loop.hear('go') is Heard.NEW  # once
    press_estop(loop)
    loop.reset_estop()
    assert loop.hear('go') is Heard.NEW


def test_an_empty_text_is_taken_while_the_estop_is_locked(loop):
    press_estop(loop)
    assert loop.hear('') is Heard.NEW


def repeat(loop, text='go'):
    """Hear a text every second, as from `ros2 topic pub`; return what it asked for each time."""
    heard = set()
    for _ in range(5):
        loop.steps(20)
        heard.add(loop.hear(text))
    return heard


@pytest.mark.parametrize('stop', ['', 'come'])
def test_a_text_that_is_repeated_starts_nothing_after_a_stop_or_beside_another_text(loop, stop):
    """Pins a bug: within a second of the stop the robot moved again."""
    assert repeat(loop) == {Heard.SAME}
    assert loop.hear(stop) is Heard.NEW
    assert repeat(loop) == {Heard.REPEATED}
    assert loop.controller.instruction == stop
    assert loop.hear('') is Heard.NEW  # once more does not help it
    assert repeat(loop) == {Heard.REPEATED}
    loop.wait()
    assert loop.hear('go') is Heard.NEW


def test_a_text_that_is_repeated_while_nobody_may_follow_it_starts_nothing_afterwards(loop):
    """Pins a bug: while the node was inactive each was new, and the next after activate moved."""
    loop.controller.set_instruction('')
    for number in range(5):
        loop.steps(20)
        heard = loop.controller.hear('come', loop.now)  # what the node ignores while inactive
        assert heard is (Heard.NEW if number < 2 else Heard.REPEATED)
    loop.wait()
    assert loop.hear('come') is Heard.NEW


def test_two_texts_that_are_repeated_do_not_take_turns_for_ever(loop):
    """Pins a bug: each was new beside the other, and the robot followed both in turn."""
    turns = []
    for _ in range(5):
        for text in ('go', 'come'):
            loop.steps(10)
            turns.append(loop.hear(text))
    assert Heard.NEW not in turns[4:] and loop.controller.instruction == 'come'
    assert turns[-2:] == [Heard.REPEATED, Heard.SAME]


def test_a_text_that_is_repeated_starts_nothing_after_a_goal_that_gave_it_has_ended(loop):
    assert repeat(loop) == {Heard.SAME}
    loop.controller.set_instruction('')  # as the end of a goal does
    assert repeat(loop) == {Heard.REPEATED}


def test_a_text_that_is_repeated_through_an_estop_starts_nothing_by_an_empty_one_alone(loop):
    repeat(loop)
    press_estop(loop)
    loop.reset_estop()
    assert repeat(loop) == {Heard.BARRED}
    assert loop.hear('') is Heard.NEW
    assert repeat(loop) == {Heard.REPEATED}


def test_a_text_that_was_given_once_may_be_given_again_at_once_after_a_stop(loop):
    for _ in range(3):
        assert loop.hear('') is Heard.NEW and loop.hear('go') is Heard.NEW


def test_a_text_that_was_given_once_during_an_estop_may_be_given_again_behind_an_empty_one(loop):
    press_estop(loop)
    assert loop.hear('look') is Heard.LOCKED
    loop.reset_estop()
    assert loop.hear('') is Heard.NEW and loop.hear('look') is Heard.NEW
