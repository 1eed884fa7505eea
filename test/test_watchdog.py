# SPDX-License-Identifier: Apache-2.0
"""Watchdogs, the restart budget, the e-stop latch and the latency window."""

import math

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from worldvla_ros.errors import ConfigError
from worldvla_ros.safety.latency import LatencyWindow
from worldvla_ros.safety.watchdog import EStop, RestartBudget, Watchdog


def test_a_watchdog_that_was_never_fed_is_expired():
    dog = Watchdog('worker', 100)
    assert dog.expired(0) and dog.age_ns(0) is None


def test_a_watchdog_expires_after_its_timeout_and_recovers():
    dog = Watchdog('worker', 100)
    dog.feed(1000)
    assert not dog.expired(1100) and dog.age_ns(1100) == 100
    assert dog.expired(1101)
    dog.feed(1101)
    assert not dog.expired(1101)
    dog.clear()
    assert dog.expired(1101)


def test_a_clock_that_jumps_back_does_not_keep_a_dead_source_alive():
    dog = Watchdog('worker', 100)
    dog.feed(1_000_000)
    assert dog.expired(0)


@given(st.integers(0, 4), st.lists(st.integers(0, 50), max_size=40))
def test_no_window_holds_more_restarts_than_the_budget(max_restarts, gaps):
    budget = RestartBudget(max_restarts, window_ns=100)
    allowed = [now for now in np.cumsum(gaps).tolist() if budget.allow(now)]
    for start in allowed:
        assert sum(start <= now < start + 100 for now in allowed) <= max_restarts


def test_a_spent_budget_comes_back_with_time():
    budget = RestartBudget(2, window_ns=100)
    assert [budget.allow(now) for now in (0, 10, 20, 99, 100, 101)] == [
        True, True, False, False, True, False]
    assert budget.remaining(110) == 1


def test_the_estop_latches_until_a_reset_with_the_input_released():
    estop = EStop()
    assert not estop.locked
    estop.set(True)
    assert estop.locked and estop.cause == 'pressed'
    assert not estop.reset()
    estop.set(False)
    assert estop.locked
    assert estop.reset()
    assert not estop.locked and estop.cause == ''


def test_without_a_heartbeat_timeout_silence_does_not_lock():
    assert not EStop().poll(10**12)


def test_with_a_heartbeat_timeout_it_is_locked_from_the_start_and_by_silence():
    """Pins a bug: what was heard before the first poll, while a policy loaded, kept it open."""
    estop = EStop(heartbeat_timeout_ns=100)
    estop.set(False, 0)
    assert estop.poll(0) and 'not reset' in estop.cause
    estop = EStop(heartbeat_timeout_ns=100)
    assert not estop.reset(0)
    estop.set(False, 10)
    assert estop.poll(20), 'a heartbeat alone must not unlock'
    assert estop.reset(20)
    assert not estop.poll(110)
    assert estop.poll(111) and 'silent' in estop.cause
    assert not estop.reset(111)


@given(st.lists(st.sampled_from(['press', 'release', 'reset', 'tick', 'wait'])))
def test_only_a_reset_with_a_released_living_input_unlocks(events):
    estop, now, pressed, heard = EStop(heartbeat_timeout_ns=100), 0, False, None
    for event in events:
        was_locked = estop.locked
        now += 150 if event == 'wait' else 10
        if event in ('press', 'release'):
            pressed, heard = event == 'press', now
            estop.set(pressed, now)
        elif event == 'reset':
            estop.reset(now)
        else:
            estop.poll(now)
        if was_locked and not estop.locked:
            assert event == 'reset' and not pressed and now - heard <= 100
        if event == 'press':
            assert estop.locked
        if event == 'wait':
            assert estop.locked


def test_percentiles_are_those_of_the_last_latencies():
    window = LatencyWindow(100)
    for value in range(250):
        window.add(float(value))
    assert window.count == 100
    assert window.p50 == pytest.approx(np.percentile(np.arange(150, 250), 50))
    assert window.p99 == pytest.approx(np.percentile(np.arange(150, 250), 99))


def test_a_latency_that_cannot_be_is_ignored():
    window = LatencyWindow(10)
    for seconds in (math.nan, -1.0, math.inf, 0.2):
        window.add(seconds)
    assert (window.count, window.p50) == (1, 0.2)
    assert math.isnan(LatencyWindow(10).p99)


@pytest.mark.parametrize('make', [
    lambda: Watchdog('worker', 0), lambda: RestartBudget(-1, 1), lambda: RestartBudget(1, 0),
    lambda: EStop(heartbeat_timeout_ns=0), lambda: LatencyWindow(0)])
def test_impossible_settings_are_refused(make):
    with pytest.raises(ConfigError):
        make()
