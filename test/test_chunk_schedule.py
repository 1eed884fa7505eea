# SPDX-License-Identifier: Apache-2.0
"""Which action is due: the right epoch, in order, and by consumed index."""

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
import numpy as np
import pytest

from worldvla_ros.datatypes import ACTION_DIM, ActionChunk
from worldvla_ros.errors import ConfigError, InferenceError
from worldvla_ros.policy.chunk_schedule import Arrival, ChunkSchedule


def chunk(horizon=5, label=''):
    actions = np.repeat(np.arange(horizon, dtype=np.float32)[:, None], ACTION_DIM, axis=1)
    empty = np.zeros((0, ACTION_DIM))
    return ActionChunk(actions, empty.astype(np.int32), empty.astype(np.float32), label, (0,))


def loaded(mode='sync', replan_steps=5, horizon=5):
    schedule = ChunkSchedule(mode, replan_steps)
    outcome = schedule.arrived(schedule.submitted(), chunk(horizon))
    assert outcome.accepted
    return schedule


def steps(schedule, count):
    due = [schedule.next() for _ in range(count)]
    return [None if action is None else action.step for action in due]


class AnyInterleaving(RuleBasedStateMachine):
    """Every order of submit, arrive, fail, next and new epoch keeps the promises."""

    @initialize(mode=st.sampled_from(['sync', 'async']), replan_steps=st.integers(1, 6))
    def start(self, mode, replan_steps):
        self.mode = mode
        self.replan_steps = replan_steps
        self.schedule = ChunkSchedule(mode, replan_steps)
        self.tickets = []  # (ticket, label) not yet answered
        self.consumed = 0
        self.consumed_at_submission = {}
        self.last = None
        self.accepted = self.dropped = self.underruns = 0
        self.started = False

    @precondition(lambda self: not self.schedule.in_flight)
    @rule()
    def submit(self):
        ticket = self.schedule.submitted()
        label = f'epoch {self.schedule.epoch} ticket {ticket.number}'
        self.consumed_at_submission[label] = self.consumed
        self.tickets.append((ticket, label))
        assert self.schedule.in_flight

    @precondition(lambda self: self.tickets)
    @rule(data=st.data(), horizon=st.integers(1, 6), again=st.booleans())
    def arrive(self, data, horizon, again):
        index = data.draw(st.integers(0, len(self.tickets) - 1))
        ticket, label = self.tickets[index] if again else self.tickets.pop(index)
        outcome = self.schedule.arrived(ticket, chunk(horizon, label))
        self.accepted += outcome.accepted
        self.dropped += not outcome.accepted
        self.underruns += outcome.arrival is Arrival.ELAPSED
        self.started |= outcome.accepted
        if ticket.epoch != self.schedule.epoch:
            assert outcome.arrival is Arrival.STALE_EPOCH
        if outcome.accepted:
            assert outcome.chunk_sequence == self.accepted
            assert outcome.skipped == self.consumed - self.consumed_at_submission[label]

    @precondition(lambda self: self.tickets)
    @rule(data=st.data())
    def fail(self, data):
        ticket, _ = self.tickets.pop(data.draw(st.integers(0, len(self.tickets) - 1)))
        self.schedule.failed(ticket)

    @rule()
    def new_epoch(self):
        before = self.schedule.epoch
        assert self.schedule.new_epoch() == before + 1
        assert self.schedule.queue_depth == 0
        assert self.schedule.wants_chunk()
        self.started = False

    @rule(count=st.integers(1, 3))
    def take(self, count):
        for _ in range(count):
            depth = self.schedule.queue_depth
            due = self.schedule.next()
            assert (due is None) == (depth == 0)
            assert self.schedule.starved == (due is None and self.may_starve())
            if due is None:
                self.underruns += self.may_starve()
                return
            assert self.schedule.queue_depth == depth - 1
            label = due.chunk.instruction
            assert label.startswith(f'epoch {self.schedule.epoch} ')
            assert due.step == self.consumed - self.consumed_at_submission[label]
            assert (due.action == due.step).all()
            if self.last is not None:
                assert (due.chunk_sequence, due.step) > self.last
            self.last = (due.chunk_sequence, due.step)
            self.consumed += 1

    def may_starve(self):
        return self.mode == 'async' and self.started

    @invariant()
    def counters_agree(self):
        assert self.schedule.replans == self.accepted
        assert self.schedule.dropped_chunks == self.dropped
        assert self.schedule.underruns == self.underruns
        if self.schedule.in_flight:
            assert not self.schedule.wants_chunk()


TestAnyInterleaving = AnyInterleaving.TestCase
TestAnyInterleaving.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@given(st.integers(1, 8), st.data())
def test_async_with_a_constant_delay_never_stops_and_repeats_every_replan_steps(replan, data):
    delay = data.draw(st.integers(0, replan))
    schedule = loaded('async', replan, horizon=replan + delay)
    ticket, due_at = None, 0
    submissions = []
    for now in range(200):
        if ticket is not None and now >= due_at:
            schedule.arrived(ticket, chunk(replan + delay))
            ticket = None
        if schedule.wants_chunk():
            ticket, due_at = schedule.submitted(), now + delay
            submissions.append(now)
            if delay == 0:
                schedule.arrived(ticket, chunk(replan + delay))
                ticket = None
        assert schedule.next() is not None
    assert schedule.underruns == 0
    assert set(np.diff(submissions)) <= {replan}


def test_sync_runs_replan_steps_and_then_waits_for_a_chunk():
    schedule = loaded('sync', replan_steps=3)
    assert schedule.queue_depth == 3
    assert not schedule.wants_chunk()
    assert steps(schedule, 4) == [0, 1, 2, None]
    assert schedule.wants_chunk()
    ticket = schedule.submitted()
    assert not schedule.wants_chunk()
    assert steps(schedule, 2) == [None, None]
    assert schedule.underruns == 0 and not schedule.starved
    outcome = schedule.arrived(ticket, chunk())
    assert outcome.skipped == 0 and outcome.chunk_sequence == 2
    assert steps(schedule, 3) == [0, 1, 2]


def test_async_asks_after_replan_steps_and_skips_what_elapsed():
    schedule = loaded('async', replan_steps=2, horizon=6)
    assert steps(schedule, 1) == [0]
    assert not schedule.wants_chunk()
    assert steps(schedule, 1) == [1]
    assert schedule.wants_chunk()
    ticket = schedule.submitted()
    assert steps(schedule, 3) == [2, 3, 4]
    outcome = schedule.arrived(ticket, chunk(6))
    assert outcome.skipped == 3
    assert schedule.dropped_actions == 3
    assert schedule.wants_chunk()
    assert steps(schedule, 3) == [3, 4, 5]


def test_steps_without_an_action_do_not_count_as_elapsed():
    schedule = loaded('async', replan_steps=2, horizon=3)
    steps(schedule, 2)
    ticket = schedule.submitted()
    assert steps(schedule, 4) == [2, None, None, None]
    assert schedule.underruns == 3 and schedule.starved
    assert schedule.arrived(ticket, chunk(3)).skipped == 1
    assert steps(schedule, 1) == [1]
    assert not schedule.starved


def test_a_chunk_whose_steps_all_elapsed_is_dropped_and_counts_as_underrun():
    schedule = loaded('async', replan_steps=1, horizon=5)
    steps(schedule, 1)
    ticket = schedule.submitted()
    steps(schedule, 2)
    outcome = schedule.arrived(ticket, chunk(2))
    assert outcome.arrival is Arrival.ELAPSED and outcome.chunk_sequence == 0
    assert (schedule.underruns, schedule.dropped_chunks, schedule.dropped_actions) == (1, 1, 2)
    assert steps(schedule, 1) == [3]
    assert schedule.wants_chunk()


def test_waiting_for_the_first_chunk_of_an_epoch_is_no_underrun():
    schedule = ChunkSchedule('async', 5)
    assert schedule.next() is None
    schedule.arrived(schedule.submitted(), chunk())
    schedule.new_epoch()
    assert schedule.next() is None
    assert schedule.underruns == 0 and not schedule.starved


def test_a_new_epoch_discards_the_queue_and_the_chunk_in_flight():
    schedule = loaded('async', replan_steps=1)
    steps(schedule, 1)
    ticket = schedule.submitted()
    schedule.new_epoch()
    assert schedule.next() is None
    assert schedule.arrived(ticket, chunk()).arrival is Arrival.STALE_EPOCH
    assert schedule.next() is None
    assert schedule.dropped_chunks == 1


def test_a_failed_inference_can_be_asked_for_again():
    schedule = ChunkSchedule('sync', 5)
    ticket = schedule.submitted()
    schedule.failed(ticket)
    assert schedule.wants_chunk()
    assert schedule.arrived(ticket, chunk()).arrival is Arrival.UNKNOWN_TICKET


def test_a_second_submission_while_one_is_in_flight_is_refused():
    schedule = ChunkSchedule('sync', 5)
    schedule.submitted()
    with pytest.raises(InferenceError, match='in flight'):
        schedule.submitted()


def test_a_chunk_shorter_than_replan_steps_runs_whole_and_says_so():
    schedule = ChunkSchedule('sync', 8)
    outcome = schedule.arrived(schedule.submitted(), chunk(5))
    assert outcome.accepted and 'set replan_steps <= 5' in outcome.error
    assert steps(schedule, 6) == [0, 1, 2, 3, 4, None]
    assert schedule.wants_chunk()


def test_chunks_are_numbered_from_one_over_all_epochs():
    schedule = loaded()
    assert schedule.next().chunk_sequence == 1
    schedule.new_epoch()
    assert schedule.arrived(schedule.submitted(), chunk()).chunk_sequence == 2


@pytest.mark.parametrize('mode, replan_steps', [('turbo', 5), ('sync', 0)])
def test_impossible_settings_are_refused(mode, replan_steps):
    with pytest.raises(ConfigError):
        ChunkSchedule(mode, replan_steps)
