# SPDX-License-Identifier: Apache-2.0
"""A controller with a fake backend and a fake clock, for the tests of the control loop."""

import numpy as np
from scipy.spatial.transform import Rotation

from worldvla_ros.control.controller import PolicyController
from worldvla_ros.control.instruction import InstructionTopic
from worldvla_ros.control.pause import Pause
from worldvla_ros.control.settings import (
    LOCKSTEP,
    ControllerSettings,
    ControlSettings,
    ObservationSettings,
)
from worldvla_ros.datatypes import ActionChunk, Frame
from worldvla_ros.inference.backend import BackendInfo, Health, Result
from worldvla_ros.safety.limits import SafetyLimits, Verdict
from worldvla_ros.safety.watchdog import EStop

HORIZON = 3
PERIOD = 50_000_000  # [ns] of 20 Hz
SECOND = 1_000_000_000
GRIPPER = 0.25
GAIN = 0.26  # share of a commanded translation that the arm covers in a period
TOOL_DOWN = Rotation.from_rotvec([np.pi, 0, 0])


class FakeBackend:
    """Answers when told to, and remembers which request each chunk answers."""

    fault, restarts, heartbeat_age, memory_bytes = '', 0, 0.0, 0

    def __init__(self, latency=0):
        self.latency = latency  # polls until a request is answered; None: never by itself
        self.health = Health.READY
        self.requests = []  # (number, observation) in order
        self.hints = []
        self.next_answer = None  # to the request that comes next, as in `answers`
        self.answers = {}  # number -> actions or an error message; the default is a chunk
        self.refusal = None  # raised by submit
        self.pending = None
        self.chunks = []  # (index in requests, chunk)
        self._waited = 0
        self._ready = []

    @property
    def busy(self):
        return self.pending is not None

    def submit(self, request, observation):
        if self.refusal is not None:
            raise self.refusal
        assert self.health is Health.READY and not self.busy
        self.pending = request, observation
        self.requests.append(self.pending)
        if self.next_answer is not None:
            self.answers[request], self.next_answer = self.next_answer, None
        self._waited = 0

    def prepare(self, frames, instruction):
        self.hints.append(([frame.stamp_ns for frame in frames], instruction))

    def poll(self):
        if self.pending is not None and self.latency is not None:
            if self._waited >= self.latency:
                self.finish()
            self._waited += 1
        ready, self._ready = self._ready, []
        return ready

    def finish(self):
        """Answer the request in flight."""
        (number, observation), self.pending = self.pending, None
        answer = self.answers.get(number, chunk_actions(number))
        if isinstance(answer, str):
            self._ready.append(Result(number, None, answer))
            return
        chunk = ActionChunk(
            answer, np.zeros((0, 7), np.int32), np.zeros((0, 7), np.float32),
            observation.instruction, tuple(frame.stamp_ns for frame in observation.frames))
        self.chunks.append((len(self.requests) - 1, chunk))
        self._ready.append(Result(number, chunk))

    def request_of(self, chunk):
        """Return the index of the request that a chunk answers."""
        return next(index for index, one in self.chunks if one is chunk)


def chunk_actions(number, horizon=HORIZON):
    actions = np.zeros((horizon, 7), np.float32)
    actions[:, 0] = number / 1000
    actions[:, 1] = np.arange(horizon) / 1000
    actions[:, 6] = GRIPPER
    return actions


def frame(stamp_ns, value=None):
    """A picture that differs from stamp to stamp unless a value is given."""
    image = np.full((4, 4, 3), 1, np.uint8)
    image.reshape(-1)[:8] = np.frombuffer(np.int64(stamp_ns if value is None else value), np.uint8)
    return Frame(image, stamp_ns)


class Loop:
    """A controller with a fake backend and a fake clock that advances one period per step."""

    def __init__(self, *, latency=0, limits=None, obs=None, reads_state=False, reads_wrist=False,
                 heartbeat_ns=None, history_length=2, **control):
        self.backend = FakeBackend(latency)
        self.arrivals = []
        self.estop = EStop(heartbeat_ns)
        self.controller = PolicyController(
            ControllerSettings(ControlSettings(**control), obs or ObservationSettings(),
                               limits=limits or SafetyLimits()),
            self.backend, BackendInfo(
                'fake', HORIZON, history_length, 4, reads_state, reads_wrist), self.estop,
            InstructionTopic(), Pause(), translation_gain=GAIN, on_chunk=self.arrivals.append)
        self.now = 100 * SECOND
        self.outgoing = None

    def see(self, **options):
        return self.controller.push_frame(frame(self.now, **options))

    def see_by_wrist(self, ago=0, **options):
        """Take a picture of the wrist camera as of some time [ns] ago."""
        return self.controller.push_wrist_frame(frame(self.now - ago, **options))

    def drift(self, feed, rate, steps=200):
        """Let the camera and what `feed` takes, `rate` times a second, drift through all phases.

        :param feed: called with how long ago [ns] it was measured; a tick may come in between.
        """
        start, fed = self.now, 0
        for number in range(steps):
            self.now = start + round((number + 1) * 1.003 * PERIOD)
            while (stamp_ns := start + fed * SECOND // rate) <= self.now:
                feed(self.now - stamp_ns)
                fed += 1
            self.see()
            yield self.controller.tick(self.now, self.now)

    def feel(self, ago=0, *, pose=True, fingers=True):
        """Take the state of the arm as of some time [ns] ago; its position is its stamp [s]."""
        stamp_ns = self.now - ago
        if pose:
            self.controller.push_ee_pose(stamp_ns, np.full(3, stamp_ns / SECOND), TOOL_DOWN)
        if fingers:
            self.controller.push_fingers(stamp_ns, np.array([0.04, -0.04]))

    def reach(self, x, ago=0):
        """Take an end effector pose at (x, 0, 0) [m] as of some time [ns] ago."""
        self.controller.push_ee_pose(self.now - ago, np.array([x, 0.0, 0.0]), TOOL_DOWN)

    def step(self, *, camera=True):
        """Let one period pass and return the command that is due."""
        self.now += PERIOD
        if camera:
            self.see()
        self.outgoing = self.controller.tick(self.now, self.now)
        return self.outgoing

    def steps(self, count, **options):
        return [self.step(**options) for _ in range(count)]

    def run(self, count=2):
        """Get it moving: an instruction, then steps until a command comes from a chunk."""
        self.controller.set_instruction('go')
        self.steps(count)
        assert self.outgoing.action is not None
        return self

    def answer(self):
        return self.controller.answer(self.now, self.now)


def lockstep(latency=0, **control):
    loop = Loop(mode=LOCKSTEP, latency=latency, **control)
    loop.controller.set_instruction('go')
    return loop


def assert_hold(outgoing, reason, gripper=GRIPPER):
    assert (outgoing.verdict, outgoing.reason) == (Verdict.HOLD, reason)
    assert outgoing.command.is_zero_motion and outgoing.command.gripper == gripper
