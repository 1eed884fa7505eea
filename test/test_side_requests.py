# SPDX-License-Identifier: Apache-2.0
"""Requests beside the loop: they take turns with it, and each gets exactly one answer."""

from hypothesis import given
from hypothesis import strategies as st

from worldvla_ros.control.side_requests import SideRequests
from worldvla_ros.inference.backend import Result


def filled(count):
    requests, answers = SideRequests(), []
    for number in range(count):
        requests.add(number, lambda result, number=number: answers.append(
            (number, result.error)))
    return requests, answers


def test_while_the_loop_waits_it_gets_every_other_turn():
    requests, _ = filled(3)
    assert requests.take(loop_waits=True) == 0
    assert requests.take(loop_waits=True) is None
    requests.loop_had_its_turn()
    assert requests.take(loop_waits=True) == 1


def test_while_the_loop_needs_nothing_all_are_served_in_order():
    requests, _ = filled(3)
    assert [requests.take(loop_waits=False) for _ in range(4)] == [0, 1, 2, None]


@given(count=st.integers(0, 5), taken=st.integers(0, 5))
def test_every_request_is_answered_once_whether_taken_or_given_up(count, taken):
    requests, answers = filled(count)
    for number in range(taken):
        if requests.take(loop_waits=False) is not None:
            requests.answer(Result(number, None, 'done'))
    requests.take(loop_waits=False)
    requests.fail('stopped')
    requests.answer(Result(9, None, 'too late'))
    requests.fail('stopped again')
    served = min(count, taken)
    assert answers == [(number, 'done' if number < served else 'stopped')
                       for number in range(count)]
