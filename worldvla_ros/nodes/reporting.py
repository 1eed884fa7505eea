# SPDX-License-Identifier: Apache-2.0
"""What the policy node says of itself: status messages, diagnostics, and log lines on changes."""

import math

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from std_msgs.msg import Header

from worldvla_ros.control.controller import PolicyController
from worldvla_ros.inference.backend import Health
from worldvla_ros.msg import PolicyStatus
from worldvla_ros.safety.limits import REASON_TEXT, Reason

_STATE_OF_REASON = {
    Reason.NONE: PolicyStatus.STATE_RUNNING,
    Reason.NO_INSTRUCTION: PolicyStatus.STATE_IDLE,
    Reason.PAUSED: PolicyStatus.STATE_PAUSED,
    Reason.ESTOP: PolicyStatus.STATE_ESTOPPED,
}


class RateMeter:
    """Counts events between two readings."""

    def __init__(self) -> None:
        self._count = 0
        self._since_ns: int | None = None

    def add(self) -> None:
        """Count one event."""
        self._count += 1

    def read(self, now_ns: int) -> float:
        """Return events per second since the last reading [Hz]."""
        since_ns, self._since_ns = self._since_ns, now_ns
        count, self._count = self._count, 0
        return 0.0 if since_ns is None or now_ns <= since_ns else count / (now_ns - since_ns) * 1e9


class Reporter:
    """Makes reports about one controller; every rate is per second of the steady clock."""

    def __init__(self, controller: PolicyController) -> None:
        self._controller = controller
        self.commands = RateMeter()
        self.frames = RateMeter()
        self.chunks = RateMeter()
        self._camera_rate = 0.0
        self._underruns = controller.schedule.underruns
        self._dropped = controller.schedule.dropped_actions
        self.frame_error = ''
        self.state_errors: dict[str, str] = {}  # by topic; what is wrong with its last message

    def halt_text(self) -> str:
        """Say what is wrong and what to do; empty while all is well."""
        controller = self._controller
        if controller.halt is Reason.WORKER_DOWN:
            if controller.inference_error:
                return f'inference failed: {controller.inference_error}'
            health = controller.backend.health
            again = '; loading again' if health is Health.LOADING else ''
            return (controller.backend.fault or REASON_TEXT[Reason.WORKER_DOWN]) + again
        text = REASON_TEXT[controller.halt]
        if controller.halt is Reason.ESTOP:
            return f'{text}; locked: {controller.estop.cause}'
        if self.frame_error and controller.halt in (Reason.NO_OBSERVATION,
                                                    Reason.STALE_OBSERVATION):
            return f'{text}; the last image was refused: {self.frame_error}'
        if self.state_errors and controller.halt in (Reason.NO_STATE, Reason.WORKSPACE):
            return f'{text}; refused: {"; ".join(self.state_errors.values())}'
        return text

    def status(self, header: Header, now_ns: int, steady_ns: int) -> PolicyStatus:
        """Describe the active controller."""
        controller = self._controller
        schedule, latency = controller.schedule, controller.latency
        state = _STATE_OF_REASON.get(controller.halt, PolicyStatus.STATE_HOLDING)
        if controller.backend.health is Health.FAILED:
            state = PolicyStatus.STATE_ERROR
        self._camera_rate = self.frames.read(steady_ns)
        return PolicyStatus(
            header=header, state=state, halt_reason=int(controller.halt),
            halt_text=self.halt_text(), instruction=controller.instruction,
            policy=controller.info.description,
            observation_age=controller.observation_age(now_ns),
            queue_depth=schedule.queue_depth,
            replans_per_second=self.chunks.read(steady_ns),
            underruns=schedule.underruns - self._underruns,
            dropped_actions=schedule.dropped_actions - self._dropped,
            worker_restarts=controller.backend.restarts,
            latency_p50=_or_minus_one(latency.p50), latency_p99=_or_minus_one(latency.p99),
            control_rate=self.commands.read(steady_ns))

    def inactive_status(self, header: Header, reason: Reason) -> PolicyStatus:
        """Describe the controller while it is not active."""
        backend = self._controller.backend
        failed = backend.health is Health.FAILED
        return PolicyStatus(
            header=header,
            state=PolicyStatus.STATE_ERROR if failed else PolicyStatus.STATE_INACTIVE,
            halt_reason=int(reason), halt_text=backend.fault or REASON_TEXT[reason],
            policy=self._controller.info.description, worker_restarts=backend.restarts,
            observation_age=-1.0, latency_p50=-1.0, latency_p99=-1.0)

    def diagnostics(self, header: Header, status: PolicyStatus, name: str) -> DiagnosticArray:
        """Describe camera, worker, control loop and, if it is read, the arm, for an aggregator."""
        backend, halt = self._controller.backend, self._controller.halt
        camera_fault = halt in (Reason.NO_OBSERVATION, Reason.STALE_OBSERVATION,
                                Reason.FROZEN_CAMERA, Reason.CLOCK)
        worker_fault = backend.health is not Health.READY
        holding = status.state in (PolicyStatus.STATE_HOLDING, PolicyStatus.STATE_ERROR)
        arm = [] if self._controller.arm is None else [_diagnostic(
            f'{name}: arm', halt is Reason.NO_STATE,
            self.halt_text() if halt is Reason.NO_STATE else '',
            last_refused='; '.join(self.state_errors.values()) or 'none')]
        return DiagnosticArray(header=header, status=[
            _diagnostic(f'{name}: camera', camera_fault, self.halt_text() if camera_fault else '',
                        rate_hz=self._camera_rate, age_s=status.observation_age,
                        last_refused=self.frame_error or 'none'),
            _diagnostic(f'{name}: worker', worker_fault, backend.fault, state=backend.health.value,
                        heartbeat_age_s=backend.heartbeat_age, restarts=backend.restarts,
                        memory_mb=backend.memory_bytes / 1e6,
                        latency_p50_ms=1e3 * status.latency_p50,
                        latency_p99_ms=1e3 * status.latency_p99),
            _diagnostic(f'{name}: control', holding, status.halt_text if holding else '',
                        rate_hz=status.control_rate, instruction=status.instruction or 'none',
                        halt=halt.name.lower(), underruns=status.underruns),
            *arm,
        ])


def _or_minus_one(value: float) -> float:
    return value if math.isfinite(value) else -1.0


def _diagnostic(name: str, fault: bool, text: str, **values: object) -> DiagnosticStatus:
    shown = {key: f'{value:.3f}' if isinstance(value, float) else str(value)
             for key, value in values.items()}
    return DiagnosticStatus(
        level=DiagnosticStatus.ERROR if fault else DiagnosticStatus.OK, name=name,
        message=text or ('fault' if fault else 'ok'),
        values=[KeyValue(key=key, value=value) for key, value in shown.items()])
