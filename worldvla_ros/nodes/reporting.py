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
_LEVEL_OF_STATE = {
    PolicyStatus.STATE_RUNNING: DiagnosticStatus.OK,
    PolicyStatus.STATE_IDLE: DiagnosticStatus.OK,
    PolicyStatus.STATE_PAUSED: DiagnosticStatus.WARN,
    PolicyStatus.STATE_ESTOPPED: DiagnosticStatus.WARN,
}
_STANDING_CLOCK = (
    'simulated time stands still: the simulator is paused or gone, or it is in lockstep and this '
    'node is not (set control.mode)')
_SILENCE_NS = 10_000_000_000  # of a simulator in lockstep, which sends again what is not answered
_SILENT_SIMULATOR = (
    'no frame for 10 s: the simulator is between two episodes, very slow, or gone')


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


class CameraReport:
    """What is to be said of one camera."""

    def __init__(self) -> None:
        self.frames = RateMeter()
        self.refusal = ''  # why the last image was refused; empty if it was not


class Reporter:
    """Makes reports about one controller; every rate is per second of the steady clock."""

    def __init__(self, controller: PolicyController) -> None:
        self._controller = controller
        self.commands = RateMeter()
        self.camera = CameraReport()
        self.wrist = CameraReport()
        self.chunks = RateMeter()
        self._camera_rate = self._wrist_rate = 0.0
        self._heard_ns: int | None = None  # steady time of the last frame, as far as reports tell
        self._silent = False  # in lockstep no frame drives the robot, which is no halt to the loop
        self.clock_stands_still = False  # why the last command is a halt, if for Reason.CLOCK
        self.state_errors: dict[str, str] = {}  # by topic; what is wrong with its last message
        self.ignored = ''  # why the last instruction changed nothing; empty if it did

    def _halt_text(self) -> str:
        """Say what is wrong and what to do; empty while all is well."""
        controller = self._controller
        if controller.halt is Reason.WORKER_DOWN:
            health = controller.backend.health
            again = '; loading again' if health is Health.LOADING else ''
            return (controller.backend.fault or REASON_TEXT[Reason.WORKER_DOWN]) + again
        if controller.halt is Reason.ESTOP:
            return f'{REASON_TEXT[Reason.ESTOP]}; locked: {controller.estop.cause}'
        if controller.halt is Reason.INFERENCE_FAILED:
            return f'{REASON_TEXT[Reason.INFERENCE_FAILED]}: {controller.inference_error}'
        if controller.halt is Reason.CLOCK and self.clock_stands_still:
            return _STANDING_CLOCK
        return self._input_text(controller.halt)

    def _input_text(self, reason: Reason) -> str:
        """Say what is wrong, with what was refused of the inputs that it is about."""
        text = REASON_TEXT[reason]
        if self.camera.refusal and reason is Reason.NO_OBSERVATION:
            return f'no image could be used; {_refused_image(self.camera)}'
        if self.camera.refusal and reason is Reason.STALE_OBSERVATION:
            return f'{text}; {_refused_image(self.camera)}'
        if self.wrist.refusal and reason is Reason.NO_WRIST_FRAME:
            return f'{text}; {_refused_image(self.wrist)}'
        if self.state_errors and reason in (Reason.NO_STATE, Reason.WORKSPACE):
            return f'{text}; refused: {"; ".join(self.state_errors.values())}'
        if self.ignored and reason is Reason.NO_INSTRUCTION:
            return f'the last instruction was ignored: {self.ignored}'
        return text

    def status(self, header: Header, now_ns: int, steady_ns: int) -> PolicyStatus:
        """Describe the active controller."""
        controller = self._controller
        schedule, latency = controller.schedule, controller.latency
        self._camera_rate = self.camera.frames.read(steady_ns)
        self._wrist_rate = self.wrist.frames.read(steady_ns)
        self._silent = self._is_silent(steady_ns)
        halt, text = controller.halt, self._halt_text()
        if self._silent and halt is Reason.NONE:
            halt, text = Reason.STALE_OBSERVATION, _SILENT_SIMULATOR
        state = _STATE_OF_REASON.get(halt, PolicyStatus.STATE_HOLDING)
        if controller.backend.health is Health.FAILED:
            state = PolicyStatus.STATE_ERROR
        return PolicyStatus(
            header=header, state=state, halt_reason=int(halt),
            halt_text=text, instruction=controller.instruction,
            policy=controller.info.description,
            observation_age=controller.sensing.age(now_ns),
            queue_depth=schedule.queue_depth,
            replans_per_second=self.chunks.read(steady_ns),
            underruns=schedule.underruns, dropped_actions=schedule.dropped_actions,
            worker_restarts=controller.backend.restarts,
            latency_p50=_or_minus_one(latency.p50), latency_p99=_or_minus_one(latency.p99),
            control_rate=self.commands.read(steady_ns))

    def restart(self, steady_ns: int) -> None:
        """Count rates from now on, because the node was not active until now."""
        for meter in (self.commands, self.chunks, self.camera.frames, self.wrist.frames):
            meter.read(steady_ns)

    def inactive_status(self, header: Header, reason: Reason) -> PolicyStatus:
        """Describe the controller while it is not active."""
        backend, schedule = self._controller.backend, self._controller.schedule
        failed = backend.health is Health.FAILED
        return PolicyStatus(
            header=header,
            state=PolicyStatus.STATE_ERROR if failed else PolicyStatus.STATE_INACTIVE,
            halt_reason=int(reason), halt_text=backend.fault or REASON_TEXT[reason],
            policy=self._controller.info.description, underruns=schedule.underruns,
            dropped_actions=schedule.dropped_actions, worker_restarts=backend.restarts,
            observation_age=-1.0, latency_p50=-1.0, latency_p99=-1.0)

    def diagnostics(self, now_ns: int, status: PolicyStatus, name: str) -> DiagnosticArray:
        """
        Describe cameras, worker, control loop and, if it is read, the arm, for an aggregator.

        Each by what it delivers itself, and not by why the robot halts: that is one reason only,
        and while there is no instruction it is that.

        :param now_ns: time of the node's clock [ns]
        :param status: of the same time
        """
        controller = self._controller
        camera = controller.camera_fault(now_ns)
        arm = [] if not controller.info.reads_state else [_diagnostic(
            f'{name}: arm', *self._judge_arm(camera),
            last_refused='; '.join(self.state_errors.values()) or 'none')]
        wrist = [] if not controller.info.reads_wrist else [_diagnostic(
            f'{name}: wrist camera',
            *self._judge_camera(controller.wrist_fault(now_ns), self.wrist),
            rate_hz=self._wrist_rate, age_s=controller.sensing.wrist_age(now_ns),
            last_refused=self.wrist.refusal or 'none')]
        return DiagnosticArray(header=status.header, status=[
            _diagnostic(f'{name}: camera', *self._judge_camera(camera, self.camera),
                        rate_hz=self._camera_rate, age_s=status.observation_age,
                        last_refused=self.camera.refusal or 'none'),
            *wrist,
            self._worker(status, name),
            _diagnostic(f'{name}: control', *_judge_control(status),
                        rate_hz=status.control_rate, instruction=status.instruction or 'none',
                        halt=Reason(status.halt_reason).name.lower(), underruns=status.underruns),
            *arm,
        ])

    def inactive_diagnostics(self, status: PolicyStatus, name: str) -> DiagnosticArray:
        """Describe the worker; the rest has nothing to do while the node is not active.

        It is there all the same: an aggregator takes what it no longer hears of for a fault.
        """
        info = self._controller.info
        resting = ['camera', *['wrist camera'] * info.reads_wrist, 'control',
                   *['arm'] * info.reads_state]
        return DiagnosticArray(header=status.header, status=[
            self._worker(status, name),
            *(_diagnostic(f'{name}: {part}', DiagnosticStatus.OK, 'the node is not active')
              for part in resting)])

    def _is_silent(self, steady_ns: int) -> bool:
        """Whether a simulator in lockstep has sent nothing for long, while it should."""
        controller = self._controller
        if (self._heard_ns is None or self._camera_rate or not controller.instruction
                or not controller.settings.lockstep):
            self._heard_ns = steady_ns
        return steady_ns - self._heard_ns > _SILENCE_NS

    def _worker(self, status: PolicyStatus, name: str) -> DiagnosticStatus:
        backend = self._controller.backend
        working = backend.health is Health.READY
        return _diagnostic(
            f'{name}: worker', DiagnosticStatus.OK if working else DiagnosticStatus.ERROR,
            backend.fault, state=backend.health.value, heartbeat_age_s=backend.heartbeat_age,
            restarts=backend.restarts, memory_mb=backend.memory_bytes / 1e6,
            latency_p50_ms=1e3 * status.latency_p50, latency_p99_ms=1e3 * status.latency_p99)

    def _judge_camera(self, fault: Reason, report: CameraReport) -> tuple[bytes, str]:
        """Return a level and why."""
        if fault is not Reason.NONE:
            return DiagnosticStatus.ERROR, self._input_text(fault)
        if self._silent:
            return DiagnosticStatus.ERROR, _SILENT_SIMULATOR
        if report.refusal:
            return DiagnosticStatus.WARN, _refused_image(report)
        return DiagnosticStatus.OK, ''

    def _judge_arm(self, camera_fault: Reason) -> tuple[bytes, str]:
        """Return a level and why; the state that is needed is that of a fresh frame."""
        if camera_fault not in (Reason.NONE, Reason.FROZEN_CAMERA):
            return DiagnosticStatus.WARN, 'not known without a frame that is fresh; see the camera'
        if self._controller.sensing.lacks_state:
            return DiagnosticStatus.ERROR, self._input_text(Reason.NO_STATE)
        return DiagnosticStatus.OK, ''


def _refused_image(report: CameraReport) -> str:
    return f'the last image was refused: {report.refusal}'


def _judge_control(status: PolicyStatus) -> tuple[bytes, str]:
    """Return a level and why."""
    level = _LEVEL_OF_STATE.get(status.state, DiagnosticStatus.ERROR)
    return level, '' if level == DiagnosticStatus.OK else status.halt_text


def _or_minus_one(value: float) -> float:
    return value if math.isfinite(value) else -1.0


def _diagnostic(name: str, level: bytes, text: str, **values: object) -> DiagnosticStatus:
    shown = {key: f'{value:.3f}' if isinstance(value, float) else str(value)
             for key, value in values.items()}
    return DiagnosticStatus(
        level=level, name=name,
        message=text or ('ok' if level == DiagnosticStatus.OK else 'fault'),
        values=[KeyValue(key=key, value=value) for key, value in shown.items()])
