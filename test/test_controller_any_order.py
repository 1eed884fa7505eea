# SPDX-License-Identifier: Apache-2.0
"""The control loop under any order of events: a command is due now, asked for now, and allowed."""

from control_loop import HORIZON, PERIOD, SECOND, Loop
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
import numpy as np
from obstacles import OBSTACLES

from worldvla_ros.errors import InstructionError
from worldvla_ros.inference.backend import Health
from worldvla_ros.safety.limits import Reason, Verdict


class AnyOrder(RuleBasedStateMachine):
    """Whatever happens in whatever order, a command is due now, asked for now, and allowed."""

    @initialize(schedule=st.sampled_from(['sync', 'async']), replan_steps=st.integers(1, 3),
                latency=st.integers(0, 5))
    def begin(self, schedule, replan_steps, latency):
        self.loop = Loop(schedule=schedule, replan_steps=replan_steps, latency=latency)
        self.voided = 0  # requests up to this one are void
        self.used = set()
        self.present = set()  # obstacles

    def void(self):
        self.voided = len(self.loop.backend.requests)

    @rule(text=st.sampled_from(['go', 'come', '', 'x' * 10_000, 'go\x00']))
    def instruct(self, text):
        usable = text in ('go', 'come') and not self.loop.controller.estop.locked
        try:
            self.loop.controller.set_instruction(text)
            assert usable or not text
        except InstructionError:
            assert not usable
        assert self.loop.controller.instruction == (text if usable else '')
        self.void()

    @rule(reason=st.sampled_from(sorted(set(OBSTACLES) - {Reason.CLOCK})),
          appear=st.booleans())
    def obstacle(self, reason, appear):
        voids = {Reason.PAUSED: appear != (reason in self.present),
                 Reason.ESTOP: appear or self.loop.controller.estop.locked}
        OBSTACLES[reason][not appear](self.loop)
        (self.present.add if appear else self.present.discard)(reason)
        if voids.get(reason):
            self.void()

    @rule()
    def reset(self):
        self.loop.controller.reset_history()
        self.void()

    @rule()
    def fail(self):
        self.loop.backend.next_answer = 'a failure'

    @rule(bad=st.sampled_from([np.nan, 1e9]))
    def talk_nonsense(self, bad):
        self.loop.backend.next_answer = np.full((HORIZON, 7), bad, np.float32)

    @rule(count=st.integers(1, 8), camera=st.booleans())
    def go_on(self, count, camera):
        for _ in range(count):
            asked = len(self.loop.backend.requests)
            self.judge(self.loop.step(camera=camera))
            self.judge_requests(asked)

    def judge(self, outgoing):
        loop, command = self.loop, outgoing.command
        assert command.is_finite and np.abs(command.translation).max() <= 0.05
        assert (outgoing.verdict is Verdict.PASS) == (outgoing.reason is Reason.NONE)
        self.present.discard(Reason.STALE_OBSERVATION)  # it is over with the next frame
        allowed = (not self.present and loop.backend.health is Health.READY
                   and 0 <= loop.controller.sensing.age(loop.now) <= 0.5)
        if not allowed:
            self.void()
        if outgoing.action is None:
            assert outgoing.verdict is Verdict.HOLD and command.is_zero_motion
            return
        assert allowed
        action = outgoing.action
        assert action.chunk.instruction == loop.controller.instruction != ''
        assert loop.backend.request_of(action.chunk) >= self.voided
        step = action.chunk_sequence, action.step
        assert step not in self.used
        self.used.add(step)

    def judge_requests(self, asked):
        for _, observation in self.loop.backend.requests[asked:]:
            stamps = [one.stamp_ns for one in observation.frames]
            assert 0 <= self.loop.now - stamps[-1] <= SECOND // 2, 'the model sees what is fresh'
            assert all(np.diff(stamps) == PERIOD), 'one control period apart'


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
