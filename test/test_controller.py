# SPDX-License-Identifier: Apache-2.0
"""The control loop: every command is due, explained and safe, and holds when anything is wrong."""

from dataclasses import replace
import itertools

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from worldvla_ros.control.controller import PolicyController
from worldvla_ros.control.settings import (
    LOCKSTEP,
    ControllerSettings,
    ControlSettings,
    ObservationSettings,
)
from worldvla_ros.datatypes import ActionChunk, Frame
from worldvla_ros.errors import (
    ConfigError,
    FrameError,
    InferenceError,
    InstructionError,
)
from worldvla_ros.inference.backend import BackendInfo, Health, Result
from worldvla_ros.policy.frame_history import PushResult
from worldvla_ros.safety.limits import Reason, SafetyLimits, Verdict

HORIZON = 3
PERIOD = 50_000_000  # [ns] of 20 Hz
SECOND = 1_000_000_000
GRIPPER = 0.25
TOOL_DOWN = Rotation.from_rotvec([np.pi, 0, 0])


class FakeBackend:
    """Answers when told to, and remembers which request each chunk answers."""

    def __init__(self, latency=0):
        self.latency = latency  # polls until a request is answered; None: never by itself
        self.health = Health.READY
        self.requests = []  # (number, observation) in order
        self.hints = []
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
        self._waited = 0

    def prepare(self, frame, instruction):
        self.hints.append((frame.stamp_ns, instruction))

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

    def __init__(self, *, latency=0, limits=None, obs=None, reads_state=False, **control):
        self.backend = FakeBackend(latency)
        self.arrivals = []
        self.controller = PolicyController(
            ControllerSettings(ControlSettings(**control), obs or ObservationSettings(),
                               limits=limits or SafetyLimits()),
            self.backend, BackendInfo('fake', HORIZON, 2, 4, reads_state),
            on_chunk=self.arrivals.append)
        self.now = 100 * SECOND
        self.outgoing = None

    def see(self, **options):
        return self.controller.push_frame(frame(self.now, **options))

    def feel(self, ago=0, *, pose=True, fingers=True):
        """Take the state of the arm as of some time [ns] ago; its position is its stamp [s]."""
        stamp_ns = self.now - ago
        if pose:
            self.controller.arm.push_pose(stamp_ns, np.full(3, stamp_ns / SECOND), TOOL_DOWN)
        if fingers:
            self.controller.arm.push_fingers(stamp_ns, np.array([0.04, -0.04]))

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


def assert_hold(outgoing, reason, gripper=GRIPPER):
    assert (outgoing.verdict, outgoing.reason) == (Verdict.HOLD, reason)
    assert outgoing.command.is_zero_motion and outgoing.command.gripper == gripper


# --- the ordinary run (rules a, b, g) ---------------------------------------------------------


def test_an_instruction_and_a_camera_are_all_it_needs():
    loop = Loop()
    assert_hold(loop.step(), Reason.NO_INSTRUCTION, gripper=0)
    loop.controller.set_instruction('  pick up\tthe  milk ')
    assert loop.controller.instruction == 'pick up the milk'
    assert_hold(loop.step(), Reason.WAITING_FOR_CHUNK, gripper=0)
    outgoing = loop.step()
    assert outgoing.verdict is Verdict.PASS and outgoing.reason is Reason.NONE
    assert outgoing.command.translation[0] == pytest.approx(0.05 * 0.001)
    assert loop.controller.halt is Reason.NONE
    assert loop.controller.latency.count == 1
    assert loop.controller.latency.p50 == pytest.approx(PERIOD / SECOND)


def test_every_command_from_a_chunk_names_chunk_step_frame_and_instruction():
    loop = Loop().run()
    seen = [loop.outgoing.action] + [one.action for one in loop.steps(8) if one.action]
    assert [(one.chunk_sequence, one.step) for one in seen] == [
        (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2), (3, 0)]
    assert {one.chunk.instruction for one in seen} == {'go'}
    for one in seen:
        _, observation = loop.backend.requests[one.chunk_sequence - 1]
        assert one.chunk.frame_stamps_ns == tuple(two.stamp_ns for two in observation.frames)
    assert [one.outcome.chunk_sequence for one in loop.arrivals] == [1, 2, 3]


def test_the_model_gets_two_frames_one_period_apart_and_never_an_old_one():
    loop = Loop().run(10)
    spans = [np.diff([one.stamp_ns for one in observation.frames]).tolist()
             for _, observation in loop.backend.requests]
    assert spans == [[], [PERIOD], [PERIOD]]  # the very first has no predecessor


def test_a_black_frame_neither_reaches_the_model_nor_keeps_it_going():
    loop = Loop().run()
    for _ in range(20):
        loop.now += PERIOD
        assert loop.controller.push_frame(
            Frame(np.zeros((4, 4, 3), np.uint8), loop.now)) is PushResult.ZERO_FILLED
        loop.controller.tick(loop.now, loop.now)
    assert loop.controller.halt is Reason.STALE_OBSERVATION
    assert all(one.image.any() for _, observation in loop.backend.requests
               for one in observation.frames)


def test_the_hint_comes_before_the_last_action_of_each_chunk_with_its_frame():
    loop = Loop().run()
    assert loop.backend.hints == []
    loop.step()
    assert loop.backend.hints == []
    loop.step()
    assert loop.backend.hints == [(loop.now, 'go')]
    loop.step()
    hinted, = loop.backend.hints
    assert hinted[0] == loop.backend.requests[-1][1].frames[-2].stamp_ns


def test_no_hint_is_given_where_it_is_switched_off():
    assert Loop(prepare=False).run(12).backend.hints == []


# --- obstacles: zero motion with its reason, and a fresh chunk afterwards (rules d, f) ---------


def press_estop(loop):
    loop.controller.set_estop(True, loop.now)


def release_estop(loop):
    loop.controller.set_estop(False, loop.now)
    assert loop.controller.estop.reset(loop.now)


def pause(loop):
    loop.controller.set_paused(True)


def go_on(loop):
    loop.controller.set_paused(False)


def meet_conflict(loop):
    loop.controller.conflict = True


def end_conflict(loop):
    loop.controller.conflict = False


def lose_worker(loop):
    loop.backend.health = Health.LOADING
    if loop.backend.pending is not None:
        number, _ = loop.backend.pending
        loop.backend.pending = None
        loop.backend._ready.append(Result(number, None, 'the worker died'))


def get_worker_back(loop):
    loop.backend.health = Health.READY


def lose_camera(loop):
    loop.now += SECOND


def lose_clock(loop):
    loop.see()
    loop.now -= SECOND


def get_clock_back(loop):
    loop.now += SECOND


def nothing(loop):
    pass


OBSTACLES = {
    Reason.ESTOP: (press_estop, release_estop),
    Reason.PAUSED: (pause, go_on),
    Reason.CONFLICT: (meet_conflict, end_conflict),
    Reason.WORKER_DOWN: (lose_worker, get_worker_back),
    Reason.STALE_OBSERVATION: (lose_camera, nothing),
    Reason.CLOCK: (lose_clock, get_clock_back),
}
any_obstacle = pytest.mark.parametrize('reason', OBSTACLES, ids=lambda reason: reason.name)


@any_obstacle
@pytest.mark.parametrize('schedule', ['sync', 'async'])
def test_an_obstacle_holds_at_once_and_afterwards_only_a_fresh_chunk_moves(reason, schedule):
    appear, vanish = OBSTACLES[reason]
    loop = Loop(schedule=schedule).run()
    appear(loop)
    for _ in range(5):
        assert_hold(loop.step(camera=False), reason)
        assert loop.controller.halt is reason and loop.controller.schedule.queue_depth == 0
        if reason is Reason.CLOCK:
            loop.now -= PERIOD
    submitted = len(loop.backend.requests)
    vanish(loop)
    vanished = loop.now
    assert_hold(loop.step(), Reason.WAITING_FOR_CHUNK)
    outgoing = loop.step()
    assert outgoing.verdict is Verdict.PASS and outgoing.action.step == 0
    assert len(loop.backend.requests) == submitted + 1
    assert outgoing.action.chunk.frame_stamps_ns[-1] > vanished


@any_obstacle
@pytest.mark.parametrize('schedule', ['sync', 'async'])
@pytest.mark.parametrize('starved', [False, True])
def test_a_chunk_in_flight_when_an_obstacle_appears_is_never_run(reason, schedule, starved):
    """Starved pins a bug: being halted already, it did not void the chunk in flight."""
    appear, vanish = OBSTACLES[reason]
    loop = Loop(schedule=schedule, replan_steps=2).run()
    loop.backend.latency = None
    loop.steps(6 if starved else 2)
    assert loop.backend.busy
    void = len(loop.backend.requests)
    appear(loop)
    assert_hold(loop.step(camera=False), reason)
    if loop.backend.busy:
        loop.backend.finish()
    if reason is Reason.CLOCK:
        loop.now -= PERIOD
    assert_hold(loop.step(camera=False), reason)
    loop.backend.latency = 0
    vanish(loop)
    moved = [one.action for one in loop.steps(6) if one.action is not None]
    assert moved and all(loop.backend.request_of(one.chunk) >= void for one in moved)


def test_without_a_camera_it_says_that_no_frame_has_come():
    loop = Loop()
    loop.controller.set_instruction('go')
    assert_hold(loop.step(camera=False), Reason.NO_OBSERVATION, gripper=0)
    assert loop.controller.observation_age(loop.now) == -1


@pytest.mark.parametrize('schedule', ['async', 'sync'])
def test_a_frozen_camera_holds_until_the_picture_changes(schedule):
    loop = Loop(obs=ObservationSettings(frozen_after=5), schedule=schedule, replan_steps=1).run()
    for _ in range(12):
        loop.now += PERIOD
        loop.see(value=1)
        outgoing = loop.controller.tick(loop.now, loop.now)
    assert_hold(outgoing, Reason.FROZEN_CAMERA)
    assert_hold(loop.step(), Reason.WAITING_FOR_CHUNK)
    assert loop.step().verdict is Verdict.PASS


def test_a_silent_estop_topic_locks_where_a_heartbeat_is_asked_for():
    loop = Loop(heartbeat_estop=0.2)
    loop.controller.set_estop(False, loop.now)
    loop.run()
    assert_hold(loop.steps(3)[-1], Reason.ESTOP)
    loop.controller.set_estop(False, loop.now)
    assert_hold(loop.step(), Reason.ESTOP)  # a sign of life alone does not unlock it


def test_the_gravest_obstacle_is_the_one_reported():
    loop = Loop().run()
    lose_camera(loop)
    lose_worker(loop)
    assert loop.step(camera=False).reason is Reason.WORKER_DOWN
    pause(loop)
    assert loop.step(camera=False).reason is Reason.PAUSED
    press_estop(loop)
    assert loop.step(camera=False).reason is Reason.ESTOP


def test_stamps_that_jump_back_void_the_plan():
    loop = Loop().run()
    loop.now -= 10 * SECOND
    assert_hold(loop.step(), Reason.WAITING_FOR_CHUNK)
    assert loop.step().action.chunk.frame_stamps_ns == (loop.now - PERIOD,)


def test_a_stop_from_outside_is_zero_motion_and_voids_the_plan():
    loop = Loop().run()
    assert_hold(loop.controller.hold(Reason.SHUTDOWN), Reason.SHUTDOWN)
    assert_hold(loop.step(), Reason.WAITING_FOR_CHUNK)


def test_a_reset_forgets_frames_plan_and_gripper():
    loop = Loop().run()
    loop.controller.reset_history()
    assert_hold(loop.step(camera=False), Reason.NO_OBSERVATION, gripper=0)
    loop.steps(2)
    assert len(loop.backend.requests[-1][1].frames) == 1


# --- instructions -----------------------------------------------------------------------------


@pytest.mark.parametrize('text', ['x' * 10_000, 'x' * 501, 'go\x07', 'go\x1b[31m', 'go\udc80'])
def test_an_instruction_that_cannot_be_used_is_refused_and_holds(text):
    loop = Loop().run()
    with pytest.raises(InstructionError, match='an instruction'):
        loop.controller.set_instruction(text)
    assert_hold(loop.step(), Reason.NO_INSTRUCTION)
    assert loop.controller.instruction == ''
    loop.controller.set_instruction('go')
    assert_hold(loop.step(), Reason.WAITING_FOR_CHUNK)
    assert loop.step().verdict is Verdict.PASS


@pytest.mark.parametrize('text', ['', ' \t\n'])
def test_an_empty_instruction_stops(text):
    loop = Loop().run()
    loop.controller.set_instruction(text)
    assert_hold(loop.step(), Reason.NO_INSTRUCTION)


def test_the_longest_instruction_and_any_script_are_taken():
    controller = Loop().controller
    controller.set_instruction('x' * 500)
    controller.set_instruction('nimm die Äpfel und 牛奶')
    assert controller.instruction == 'nimm die Äpfel und 牛奶'


def test_the_same_instruction_again_starts_the_task_again():
    loop = Loop().run()
    loop.controller.set_instruction('go')
    assert_hold(loop.step(), Reason.WAITING_FOR_CHUNK)


# --- what the model may say (rule h) ----------------------------------------------------------


@pytest.mark.parametrize('axis', [0, 4, 6])
@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_a_value_that_is_no_number_holds_for_that_step_only(axis, bad):
    loop = Loop()
    actions = chunk_actions(1)
    actions[1, axis] = bad
    loop.backend.answers[1] = actions
    loop.run()
    outgoing = loop.step()
    assert_hold(outgoing, Reason.NOT_FINITE)
    assert (outgoing.action.chunk_sequence, outgoing.action.step) == (1, 1)
    assert loop.step().verdict is Verdict.PASS


@given(st.lists(st.lists(st.floats(width=32), min_size=7, max_size=7), min_size=1, max_size=6))
def test_whatever_the_model_says_the_commands_are_finite_and_inside_the_limits(actions):
    loop = Loop()
    loop.backend.answers[1] = np.array(actions, np.float32)
    limits = loop.controller.settings.limits
    loop.controller.set_instruction('go')
    for outgoing in loop.steps(len(actions) + 2):
        command = outgoing.command
        assert command.is_finite
        assert np.abs(command.translation).max() <= limits.max_translation
        assert np.abs(command.rotation_vector).max() <= limits.max_rotation
        assert limits.gripper_min <= command.gripper <= limits.gripper_max


def test_a_workspace_needs_the_end_effector_position():
    loop = Loop(limits=SafetyLimits(workspace_max=(0.5, 0.5, 0.5)))
    loop.backend.answers[1] = chunk_actions(100)
    loop.controller.set_instruction('go')
    loop.steps(2)
    assert_hold(loop.outgoing, Reason.WORKSPACE, gripper=0)
    loop.controller.set_ee_position(np.array([0.499, 0, 0]))
    outgoing = loop.step()
    assert outgoing.reason is Reason.WORKSPACE and outgoing.verdict is Verdict.LIMITED
    assert outgoing.command.translation[0] == pytest.approx(0.001)


# --- failures and services --------------------------------------------------------------------


def test_a_failed_inference_is_tried_again_after_a_pause_and_recovers():
    loop = Loop()
    loop.backend.answers = {1: 'out of memory', 2: 'out of memory'}
    loop.controller.set_instruction('go')
    outgoing = loop.steps(15)
    assert [one.reason for one in outgoing] == [Reason.WAITING_FOR_CHUNK] + 14 * [
        Reason.WORKER_DOWN]
    assert loop.controller.inference_error == 'out of memory'
    assert len(loop.backend.requests) == 1
    loop.steps(30)
    assert len(loop.backend.requests) == 3
    assert any(one.action is not None for one in loop.steps(2))
    assert loop.controller.inference_error == ''


def test_a_frame_that_the_backend_refuses_is_a_failed_inference_and_no_crash():
    loop = Loop()
    loop.backend.refusal = FrameError('too large')
    loop.controller.set_instruction('go')
    assert_hold(loop.step(), Reason.WORKER_DOWN, gripper=0)
    assert loop.controller.inference_error == 'too large'
    loop.backend.refusal = None
    assert any(one.action is not None for one in loop.steps(25))


def test_the_failure_of_a_void_request_does_not_delay_the_next():
    loop = Loop(latency=None)
    loop.backend.answers[1] = 'the instruction is too long'
    loop.controller.set_instruction('go')
    loop.step()
    loop.controller.set_instruction('stop it')
    loop.backend.finish()
    assert_hold(loop.step(), Reason.WAITING_FOR_CHUNK, gripper=0)
    assert [observation.instruction for _, observation in loop.backend.requests] == [
        'go', 'stop it']


def test_async_reports_an_underrun_when_inference_is_slower_than_the_robot():
    loop = Loop(schedule='async', replan_steps=1).run()
    loop.backend.latency = None
    assert [one.reason for one in loop.steps(4)][-1] is Reason.UNDERRUN
    assert loop.controller.schedule.underruns > 0


def test_async_drops_as_many_steps_as_were_consumed_since_the_request():
    """Rule (c), through the controller: the request goes out when one step is consumed."""
    loop = Loop(schedule='async', replan_steps=1, latency=1)
    loop.controller.set_instruction('go')
    actions = [one.action for one in loop.steps(30) if one.action is not None]
    for earlier, later in itertools.pairwise(actions):
        if later.chunk_sequence != earlier.chunk_sequence:
            assert later.step == loop.arrivals[later.chunk_sequence - 1].outcome.skipped
    assert max(one.chunk_sequence for one in actions) > 5
    assert {one.step for one in actions if one.chunk_sequence > 1} != {0, 1, 2}


def test_a_service_gets_its_chunk_and_nothing_moves():
    loop = Loop()
    results = []
    loop.see()
    loop.controller.request_chunk('look', results.append)
    assert_hold(loop.step(), Reason.NO_INSTRUCTION, gripper=0)
    assert_hold(loop.step(), Reason.NO_INSTRUCTION, gripper=0)
    assert [one.chunk.instruction for one in results] == ['look']
    assert loop.arrivals == [] and loop.controller.schedule.queue_depth == 0


def test_a_service_waits_for_the_chunk_of_the_robot_and_does_not_disturb_it():
    loop = Loop(latency=2).run(4)
    results = []
    loop.steps(3)
    assert loop.backend.busy
    loop.controller.request_chunk('look', results.append)
    loop.steps(12)
    assert [one.chunk.instruction for one in results] == ['look']
    assert {one.chunk.instruction for one in loop.arrivals} == {'go'}


@pytest.mark.parametrize('camera, worker, reason', [
    (False, Health.READY, 'no frame'), (True, Health.LOADING, 'loading')])
def test_a_service_that_cannot_be_served_gets_the_reason(camera, worker, reason):
    loop = Loop()
    results = []
    loop.backend.health = worker
    loop.backend.refusal = InferenceError(f'the worker is {worker.value}')
    loop.controller.request_chunk('look', results.append)
    loop.step(camera=camera)
    result, = results
    assert result.chunk is None and reason in result.error


# --- lockstep (rule j) ------------------------------------------------------------------------


def lockstep(latency=0, **control):
    loop = Loop(mode=LOCKSTEP, latency=latency, **control)
    loop.controller.set_instruction('go')
    return loop


def sent(outgoing):
    """Everything of a command that a receiver can see."""
    action = outgoing.action
    return (outgoing.command.translation.tolist(), outgoing.command.rotation_vector.tolist(),
            outgoing.command.gripper, outgoing.verdict, outgoing.reason, action.chunk_sequence,
            action.step, action.chunk.frame_stamps_ns, action.chunk.instruction)


def answers_to(latencies, idle_calls, poll_calls, frames=12):
    """Run a simulator that waits for its command; the noise must not matter."""
    loop = lockstep()
    loop.backend.answers = {2: chunk_actions(999), 3: chunk_actions(3) * np.nan}
    answers = []
    for index in range(frames):
        loop.backend.latency = latencies[index % len(latencies)]
        loop.see()
        outgoing = loop.answer()
        for attempt in range(60):
            if outgoing is not None:
                break
            for _ in range(idle_calls[attempt % len(idle_calls)]):
                assert_hold(loop.controller.idle(loop.now, loop.now),
                            Reason.WAITING_FOR_CHUNK, loop.controller._previous.gripper)
            for _ in range(poll_calls[attempt % len(poll_calls)]):
                loop.controller.poll(loop.now, loop.now)
            outgoing = loop.answer()
        answers.append(sent(outgoing))
        for _ in range(idle_calls[0]):
            loop.controller.idle(loop.now, loop.now)
        assert loop.answer() is None
        loop.now += PERIOD
    return answers


@settings(max_examples=30)
@given(latencies=st.lists(st.integers(0, 6), min_size=1, max_size=4),
       idle_calls=st.lists(st.integers(0, 3), min_size=1, max_size=4),
       poll_calls=st.lists(st.integers(0, 3), min_size=1, max_size=4))
def test_lockstep_does_not_depend_on_latency_nor_on_how_often_it_is_looked_after(
        latencies, idle_calls, poll_calls):
    assert answers_to(latencies, idle_calls, poll_calls) == answers_to([0], [0], [0])


def test_a_frame_is_answered_once_however_often_one_asks():
    """Pins a bug: every later call sent the command again, and the simulator ran ahead."""
    loop = lockstep()
    assert loop.answer() is None  # no frame
    loop.see()
    assert loop.answer() is None  # inference runs
    outgoing = loop.answer()
    assert outgoing.action.step == 0
    assert [loop.answer() for _ in range(3)] == [None, None, None]
    assert loop.controller.steps == 1


def test_a_frame_that_comes_again_gets_the_same_command_again():
    loop = lockstep()
    loop.see()
    loop.answer()
    outgoing = loop.answer()
    for _ in range(3):
        assert loop.see() is PushResult.DUPLICATE
        assert loop.answer() is outgoing
        assert loop.answer() is None
    assert loop.controller.steps == 1


@pytest.mark.parametrize('stop', [press_estop, pause, meet_conflict, lose_worker])
def test_a_frame_that_comes_again_after_a_stop_gets_no_motion(stop):
    """Pins a bug: the remembered command went out although the e-stop was pressed."""
    loop = lockstep()
    loop.see()
    loop.answer()
    assert loop.answer() is not None
    stop(loop)
    loop.see()
    assert loop.answer() is None
    assert loop.controller.halt is not Reason.NONE


def test_a_frame_that_comes_again_under_a_new_instruction_gets_a_new_command():
    loop = lockstep()
    loop.see()
    loop.answer()
    assert loop.answer().action.chunk.instruction == 'go'
    loop.controller.set_instruction('stop it')
    assert [loop.answer(), loop.answer()] == [None, None]  # that frame has its command
    loop.see()
    assert loop.answer() is None
    assert loop.answer().action.chunk.instruction == 'stop it'


def test_a_late_frame_asks_for_nothing():
    loop = lockstep()
    loop.see()
    loop.answer()
    loop.answer()
    assert loop.controller.push_frame(frame(loop.now - 1)) is PushResult.OUT_OF_ORDER
    assert loop.answer() is None


def test_lockstep_answers_although_the_node_clock_is_behind_the_frames():
    loop = lockstep()
    loop.see()
    assert loop.controller.answer(0, loop.now) is None
    assert loop.controller.answer(0, loop.now).action is not None


def test_idle_explains_a_failed_inference():
    loop = lockstep()
    loop.backend.answers[1] = 'out of memory'
    loop.see()
    loop.answer()
    assert_hold(loop.controller.idle(loop.now, loop.now), Reason.WORKER_DOWN, gripper=0)


# --- the state of the arm ---------------------------------------------------------------------


def state_at(stamp_ns):
    return [*[stamp_ns / SECOND] * 3, 0, 0, 0, 0.08]


def states_seen(loop):
    return [observation.state for _, observation in loop.backend.requests]


def test_a_policy_that_does_not_read_the_state_gets_none():
    loop = Loop().run(6)
    assert loop.controller.arm is None and states_seen(loop) == [None, None]


@pytest.mark.parametrize('missing', [{'pose': False}, {'fingers': False}])
def test_without_the_state_it_holds_and_says_so_and_then_it_runs(missing):
    loop = Loop(reads_state=True)
    loop.controller.set_instruction('go')
    loop.now += PERIOD
    loop.feel(**missing)
    loop.now -= PERIOD
    for _ in range(3):
        assert_hold(loop.step(), Reason.NO_STATE, gripper=0)
    assert loop.controller.halt is Reason.NO_STATE and not loop.backend.requests
    loop.now += PERIOD
    loop.see()
    loop.feel()
    assert_hold(loop.controller.tick(loop.now, loop.now), Reason.WAITING_FOR_CHUNK, gripper=0)
    np.testing.assert_allclose(states_seen(loop), [state_at(loop.now)], atol=1e-9)


@pytest.mark.parametrize('rate', [30, 100, 1000])
def test_realtime_never_stops_for_want_of_the_state_at_usual_rates(rate):
    """The arm's clock drifts through all phases of the camera's; a tick may come in between."""
    loop = Loop(reads_state=True)
    loop.controller.set_instruction('go')
    start, fed = loop.now, 0
    for step in range(200):
        loop.now = start + round((step + 1) * 1.003 * PERIOD)
        while (stamp_ns := start + fed * SECOND // rate) <= loop.now:
            loop.feel(loop.now - stamp_ns)
            fed += 1
        loop.see()
        assert loop.controller.tick(loop.now, loop.now).reason is not Reason.NO_STATE
    for _, observation in loop.backend.requests:
        assert abs(observation.state[0] * SECOND - observation.stamp_ns) <= SECOND / rate


@pytest.mark.parametrize('schedule', ['sync', 'async'])
def test_an_arm_that_falls_silent_holds_and_afterwards_only_a_fresh_chunk_moves(schedule):
    loop = Loop(reads_state=True, schedule=schedule)
    loop.controller.set_instruction('go')

    def step(arm):
        loop.now += PERIOD
        loop.see()
        if arm:
            loop.feel()
        return loop.controller.tick(loop.now, loop.now)
    assert [step(arm=True) for _ in range(2)][-1].action is not None
    assert step(arm=False).action is not None  # the last state is one period old
    for _ in range(3):
        assert_hold(step(arm=False), Reason.NO_STATE)
        assert loop.controller.schedule.queue_depth == 0
    silent = loop.now
    assert_hold(step(arm=True), Reason.WAITING_FOR_CHUNK)
    assert step(arm=True).action.chunk.frame_stamps_ns[-1] > silent


def test_a_chunk_that_is_asked_for_without_a_state_is_refused_with_the_reason():
    loop = Loop(reads_state=True)
    results = []
    loop.see()
    loop.controller.request_chunk('look', results.append)
    loop.controller.poll(loop.now, loop.now)
    assert 'no state of the arm' in results[0].error
    loop.feel()
    loop.controller.request_chunk('look', results.append)
    loop.step(camera=False)
    loop.step(camera=False)
    assert results[1].chunk is not None and loop.backend.requests[0][1].state is not None


def test_a_reset_forgets_the_state_too():
    loop = Loop(reads_state=True)
    loop.controller.set_instruction('go')
    loop.feel()
    loop.controller.reset_history()
    loop.see()
    assert_hold(loop.controller.tick(loop.now, loop.now), Reason.NO_STATE, gripper=0)


@pytest.mark.parametrize('order', list(itertools.permutations(['see', 'pose', 'fingers'])))
def test_lockstep_answers_once_with_the_frame_s_own_state_in_whatever_order_topics_come(order):
    """Were a frame without its state an obstacle, it would void the chunk that it continues."""
    loop = lockstep(reads_state=True)
    events = {'see': loop.see, 'pose': lambda: loop.feel(fingers=False),
              'fingers': lambda: loop.feel(pose=False)}
    for step in range(2 * HORIZON):
        for name in order[:-1]:
            events[name]()
            assert loop.answer() is None
            loop.controller.idle(loop.now, loop.now)
        events[order[-1]]()
        outgoing = loop.answer() or loop.answer()  # the first asks for the chunk, if one is due
        assert outgoing.action.step == step % HORIZON
        assert [loop.answer() for _ in range(3)] == [None] * 3
        loop.feel()
        assert loop.answer() is None
        loop.now += PERIOD
    assert len(loop.backend.requests) == 2
    np.testing.assert_allclose(states_seen(loop), [
        state_at(loop.now - (2 * HORIZON - index) * PERIOD) for index in (0, HORIZON)], atol=1e-9)


def test_lockstep_repeats_its_answer_when_frame_and_state_come_again():
    loop = lockstep(reads_state=True)
    loop.see()
    loop.feel()
    outgoing = loop.answer() or loop.answer()
    for _ in range(2):
        loop.feel()
        assert loop.answer() is None
        loop.see()
        assert loop.answer() is outgoing


def test_lockstep_says_what_it_waits_for():
    loop = lockstep(reads_state=True)
    loop.see()
    loop.feel(PERIOD)  # of the frame before
    assert loop.answer() is None and loop.controller.halt is Reason.NO_STATE
    assert_hold(loop.controller.idle(loop.now, loop.now), Reason.NO_STATE, gripper=0)


# --- any order of events ----------------------------------------------------------------------


class AnyOrder(RuleBasedStateMachine):
    """Whatever happens in whatever order, a command is due now, asked for now, and allowed."""

    @initialize(schedule=st.sampled_from(['sync', 'async']), replan_steps=st.integers(1, 3),
                latency=st.integers(0, 5))
    def begin(self, schedule, replan_steps, latency):
        self.loop = Loop(schedule=schedule, replan_steps=replan_steps, latency=latency)
        self.voided = 0  # requests up to this one are void
        self.used = set()

    def void(self):
        self.voided = len(self.loop.backend.requests)

    @rule(text=st.sampled_from(['go', 'come', '', 'x' * 10_000, 'go\x00']))
    def instruct(self, text):
        usable = text in ('go', 'come')
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
        OBSTACLES[reason][not appear](self.loop)
        if reason in (Reason.ESTOP, Reason.PAUSED):
            self.void()

    @rule()
    def reset(self):
        self.loop.controller.reset_history()
        self.void()

    @rule()
    def fail(self):
        number = self.loop.controller._number + 1
        self.loop.backend.answers[number] = 'a failure'

    @rule(bad=st.sampled_from([np.nan, 1e9]))
    def talk_nonsense(self, bad):
        number = self.loop.controller._number + 1
        self.loop.backend.answers[number] = np.full((HORIZON, 7), bad, np.float32)

    @rule(count=st.integers(1, 8), camera=st.booleans())
    def go_on(self, count, camera):
        for _ in range(count):
            self.judge(self.loop.step(camera=camera))

    def judge(self, outgoing):
        loop, command = self.loop, outgoing.command
        assert command.is_finite and np.abs(command.translation).max() <= 0.05
        assert (outgoing.verdict is Verdict.PASS) == (outgoing.reason is Reason.NONE)
        age_ns = loop.controller.history.age_ns(loop.now)
        allowed = (not loop.controller.estop.locked and not loop.controller.paused
                   and not loop.controller.conflict and loop.backend.health is Health.READY
                   and age_ns is not None and age_ns <= SECOND // 2)
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

    @invariant()
    def the_model_saw_only_fresh_frames(self):
        if hasattr(self, 'loop'):
            assert all(one.image.any() for _, observation in self.loop.backend.requests[-3:]
                       for one in observation.frames)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_settings_out_of_range_are_refused_where_they_are_made():
    with pytest.raises(ConfigError, match='rate'):
        replace(ControllerSettings(), control=ControlSettings(rate=0.0))
