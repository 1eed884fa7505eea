# SPDX-License-Identifier: Apache-2.0
"""Asks the backend: for the chunks of the schedule, and for what others want beside it."""

from collections.abc import Callable
from dataclasses import dataclass
import logging

from worldvla_ros.control.sensing import Sensing
from worldvla_ros.control.settings import ControllerSettings
from worldvla_ros.control.side_requests import Ask, SideRequests
from worldvla_ros.datatypes import ActionChunk, Observation
from worldvla_ros.errors import FrameError, WorldVLAError
from worldvla_ros.inference.backend import Backend, Result
from worldvla_ros.policy.chunk_schedule import ArrivalOutcome, ChunkSchedule, Ticket
from worldvla_ros.policy.frame_history import Stale
from worldvla_ros.safety.latency import LatencyWindow

_logger = logging.getLogger(__name__)
_LATENCY_WINDOW = 500  # chunks behind the percentiles
_RETRY_NS = 1_000_000_000  # pause after a failed inference: the same input fails again


@dataclass(frozen=True, eq=False)
class ChunkArrival:
    """A chunk that the schedule accepted, for whoever wants to publish it."""

    chunk: ActionChunk
    outcome: ArrivalOutcome
    latency: float  # [s] submitted -> arrived


@dataclass(eq=False)
class _Request:
    """A request in flight."""

    ticket: Ticket | None  # None: not for the schedule, but for one of the side requests
    submitted_ns: int


class Planner:
    """
    Keeps the schedule filled; it sees what `sensing` has.

    :param on_chunk: called for each chunk that the schedule accepts
    """

    def __init__(self, settings: ControllerSettings, backend: Backend, schedule: ChunkSchedule,
                 sensing: Sensing, on_chunk: Callable[[ChunkArrival], None]) -> None:
        self._backend = backend
        self._schedule = schedule
        self._sensing = sensing
        self._on_chunk = on_chunk
        # In lockstep time stands still while the robot waits, so no chunk is too late.
        self._max_chunk_age_ns = (
            None if settings.lockstep else round(settings.obs.max_chunk_age * 1e9))
        self.latency = LatencyWindow(_LATENCY_WINDOW)  # the backend warmed up itself
        self.requests = SideRequests()
        self.failures = 0  # inferences of the schedule that failed, in succession
        self.last_failure = ''  # why; empty without one
        self._in_flight: dict[int, _Request] = {}
        self._number = 0
        self._retry_ns = 0  # steady time before which no inference is tried again; 0: any time

    @property
    def error(self) -> str:
        """Why the last inference of this epoch failed; empty if it did not."""
        return self.last_failure if self._retry_ns else ''

    def wants_chunk(self, steady_ns: int) -> bool:
        """Whether the schedule wants a chunk, and none has failed just now."""
        return self._schedule.wants_chunk() and steady_ns >= self._retry_ns

    def collect(self, now_ns: int, steady_ns: int) -> None:
        """Take what the backend has answered."""
        for result in self._backend.poll():
            self._take(result, now_ns, steady_ns)

    def replan(self, instruction: str, now_ns: int, steady_ns: int) -> None:
        """Ask for a chunk for the schedule if it wants one and the backend is free."""
        if self._backend.busy or not self.wants_chunk(steady_ns):
            return
        self.requests.loop_had_its_turn()
        ticket = self._schedule.submitted()
        self._submit(self.chunk_for(instruction), _Request(ticket, steady_ns), now_ns)

    def serve_request(self, loop_waits: bool, now_ns: int, steady_ns: int) -> None:
        """
        Ask for what somebody wants beside the schedule, if it is his turn.

        :param loop_waits: whether the control loop may ask for one of its own now
        """
        if self._backend.busy:
            return
        ask = self.requests.take(loop_waits and self.wants_chunk(steady_ns))
        if ask is not None:
            self._submit(ask, _Request(None, steady_ns), now_ns)

    def chunk_for(self, instruction: str) -> Ask:
        """Return what asks for a chunk from what is seen then."""
        return lambda number, now_ns: self._backend.submit(
            number, self.observe(now_ns, instruction))

    def observe(self, now_ns: int, instruction: str) -> Observation:
        """Return what the policy may see now. Raises FrameError."""
        return _fresh(self._sensing.observe(now_ns, instruction))

    def see(self, now_ns: int) -> Observation:
        """Return what the third-person camera shows now. Raises FrameError."""
        return _fresh(self._sensing.frames.observation(now_ns, ''))

    def void(self) -> None:
        """Start a new epoch: chunks in the queue and in flight are void."""
        self._schedule.new_epoch()
        self._retry_ns = 0

    def forget_failures(self) -> None:
        """Count failures anew."""
        self.failures, self.last_failure = 0, ''

    def _submit(self, ask: Ask, request: _Request, now_ns: int) -> None:
        self._number += 1
        self._in_flight[self._number] = request
        try:
            ask(self._number, now_ns)
        except WorldVLAError as error:
            self._take(Result(self._number, None, str(error)), now_ns, request.submitted_ns)

    def _take(self, result: Result, now_ns: int, steady_ns: int) -> None:
        """Hand a result to whoever asked for it."""
        request = self._in_flight.pop(result.request, None)
        if request is None:
            return
        if request.ticket is None:
            self.requests.answer(result)
        elif result.chunk is not None:
            latency = (steady_ns - request.submitted_ns) * 1e-9
            self._arrive(request.ticket, result.chunk, latency, now_ns)
        elif request.ticket.epoch == self._schedule.epoch:  # else nobody waits for it any more
            self._schedule.failed(request.ticket)
            self.failures += 1
            self.last_failure = result.error
            self._retry_ns = steady_ns + _RETRY_NS

    def _arrive(self, ticket: Ticket, chunk: ActionChunk, latency: float, now_ns: int) -> None:
        self.forget_failures()
        self._retry_ns = 0
        self.latency.add(latency)
        too_old = (self._max_chunk_age_ns is not None
                   and now_ns - chunk.frame_stamps_ns[-1] > self._max_chunk_age_ns)
        outcome = self._schedule.arrived(ticket, chunk, too_old=too_old)
        if outcome.accepted:
            self._on_chunk(ChunkArrival(chunk, outcome, latency))
        else:
            _logger.debug('a chunk was %s', outcome.arrival.value)


def _fresh(observation: Observation | Stale) -> Observation:
    if isinstance(observation, Stale):
        raise FrameError(observation.reason.value)
    return observation
