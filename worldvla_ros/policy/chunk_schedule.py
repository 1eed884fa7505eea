# SPDX-License-Identifier: Apache-2.0
"""Which step of which chunk is due, when to ask for the next chunk, and which chunks are void.

`sync`: run `replan_steps` actions, then ask for a chunk and wait for it; nothing is due meanwhile.
`async`: ask after `replan_steps` actions, while the rest of the chunk still runs; without a rest
(`replan_steps` is the horizon) the robot stops for every inference. Steps are consumed during the
inference, so the new chunk starts at the step that equals the number consumed since it was asked
for: counted, never estimated from a latency.

An epoch is the time between two events that make older chunks void: a new instruction, a reset,
an e-stop. Not thread-safe: one thread owns it. A discarded chunk may still keep the
backend busy; whether it can take another request is the backend's to say.
"""

from dataclasses import dataclass
from enum import Enum

import numpy as np

from worldvla_ros.datatypes import ActionChunk
from worldvla_ros.errors import ConfigError, InferenceError

MODES = ('sync', 'async')


@dataclass(frozen=True)
class Ticket:
    """Receipt for one submitted inference."""

    number: int  # counts submissions over the life of the schedule
    epoch: int
    consumed: int  # steps consumed over the life of the schedule when it was submitted


class Arrival(Enum):
    """What became of a chunk that arrived."""

    ACCEPTED = 'accepted'
    STALE_EPOCH = 'dropped: asked for before a new instruction, a reset or an e-stop'
    UNKNOWN_TICKET = 'dropped: it was not waited for (arrived twice, or after it failed)'
    ELAPSED = 'dropped: all its steps were consumed before it arrived'
    TOO_OLD = 'dropped: it arrived too long after its newest frame'


@dataclass(frozen=True)
class ArrivalOutcome:
    """The answer to a chunk that arrived."""

    arrival: Arrival
    chunk_sequence: int = 0  # number of the accepted chunk, from 1; 0 = dropped
    skipped: int = 0  # steps at its head that had elapsed
    error: str = ''  # the chunk runs, but not as configured: what to change

    @property
    def accepted(self) -> bool:
        """Whether its actions will be due."""
        return self.arrival is Arrival.ACCEPTED


@dataclass(frozen=True, eq=False)
class ScheduledAction:
    """The action that is due now, and where it came from."""

    action: np.ndarray  # (7,) float32 controller input, not yet limited
    chunk_sequence: int  # from 1, never repeats
    step: int  # index in the chunk, from 0
    chunk: ActionChunk


class ChunkSchedule:
    """
    The queue between inference and the control timer.

    :param mode: 'sync' or 'async'
    :param replan_steps: steps of a chunk after which the next chunk is asked for
    """

    def __init__(self, mode: str, replan_steps: int) -> None:
        if mode not in MODES:
            raise ConfigError(f'mode must be one of {MODES}, got {mode!r}')
        if replan_steps < 1:
            raise ConfigError(f'replan_steps must be at least 1, got {replan_steps}')
        self._mode = mode
        self._replan_steps = replan_steps
        self._chunk: ActionChunk | None = None
        self._step = 0  # next step of the chunk
        self._stop = 0  # first step of the chunk that will not run
        self._started = False  # a chunk was accepted in this epoch
        self._starved = False
        self._late = False  # the last chunk of this epoch was too old
        self._in_flight: Ticket | None = None
        self._tickets = 0
        self._consumed = 0
        self._chunk_sequence = 0
        self.epoch = 0
        self.replans = 0  # chunks accepted
        self.underruns = 0  # steps at which an action was due and none was there
        self.dropped_actions = 0  # steps skipped at the head of chunks because they had elapsed
        self.dropped_chunks = 0  # chunks that arrived void

    @property
    def queue_depth(self) -> int:
        """Actions that can still be due before another chunk must arrive."""
        return self._stop - self._step

    @property
    def in_flight(self) -> bool:
        """Whether a chunk of this epoch was submitted and has not arrived."""
        return self._in_flight is not None

    @property
    def starved(self) -> bool:
        """Whether what is due came late, or not at all; False where it waits as it should."""
        return self._starved or self._late

    def new_epoch(self) -> int:
        """Discard the queue and the chunk in flight; return the number of the new epoch."""
        self.epoch += 1
        self._chunk = None
        self._step = self._stop = 0
        self._started = self._starved = self._late = False
        self._in_flight = None
        return self.epoch

    def wants_chunk(self) -> bool:
        """Whether an inference should be submitted now."""
        if self.in_flight:
            return False
        if self._mode == 'async' and self._step >= self._replan_steps:
            return True
        return self.queue_depth == 0

    def submitted(self) -> Ticket:
        """Record that an inference was submitted; InferenceError while one is in flight."""
        if self.in_flight:
            raise InferenceError('a chunk was submitted while another is in flight; '
                                 'ask wants_chunk() first, or give up the other with failed()')
        self._tickets += 1
        self._in_flight = Ticket(self._tickets, self.epoch, self._consumed)
        return self._in_flight

    def arrived(self, ticket: Ticket, chunk: ActionChunk, *,
                too_old: bool = False) -> ArrivalOutcome:
        """
        Put a chunk in the queue, without the steps that elapsed since its submission.

        :param too_old: its newest frame is; it is dropped, and counts as an underrun
        """
        if ticket.epoch != self.epoch:
            return self._drop(Arrival.STALE_EPOCH)
        if ticket != self._in_flight:
            return self._drop(Arrival.UNKNOWN_TICKET)
        self._in_flight = None
        self._late = too_old
        if too_old:
            self.underruns += 1
            return self._drop(Arrival.TOO_OLD)
        elapsed = self._consumed - ticket.consumed
        if elapsed >= chunk.horizon:
            self.dropped_actions += chunk.horizon
            self.underruns += 1
            return self._drop(Arrival.ELAPSED)
        return self._accept(chunk, elapsed)

    def failed(self, ticket: Ticket) -> None:
        """Give up a submitted inference; a void ticket is ignored."""
        if ticket == self._in_flight:
            self._in_flight = None

    def next(self) -> ScheduledAction | None:
        """Consume the action that is due now; None where there is none (`starved` says why)."""
        if self._chunk is None or self.queue_depth == 0:
            self._starved = self._mode == 'async' and self._started
            self.underruns += self._starved
            return None
        self._starved = False
        step = self._step
        self._step += 1
        self._consumed += 1
        return ScheduledAction(self._chunk.actions[step], self._chunk_sequence, step, self._chunk)

    def _accept(self, chunk: ActionChunk, elapsed: int) -> ArrivalOutcome:
        error = ''
        if chunk.horizon < self._replan_steps:
            error = (f'replan_steps is {self._replan_steps}, but the chunk has {chunk.horizon} '
                     f'steps, so {chunk.horizon} are run; set replan_steps <= {chunk.horizon}')
        self._chunk = chunk
        self._step = elapsed
        self._stop = chunk.horizon
        if self._mode == 'sync':
            self._stop = min(chunk.horizon, elapsed + self._replan_steps)
        self._started = True
        self._chunk_sequence += 1
        self.replans += 1
        self.dropped_actions += elapsed
        return ArrivalOutcome(Arrival.ACCEPTED, self._chunk_sequence, elapsed, error)

    def _drop(self, arrival: Arrival) -> ArrivalOutcome:
        self.dropped_chunks += 1
        return ArrivalOutcome(arrival)
