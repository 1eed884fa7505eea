# SPDX-License-Identifier: Apache-2.0
"""What can get in the control loop's way: for each reason to hold, how it comes and goes."""

from control_loop import SECOND

from worldvla_ros.inference.backend import Health, Result
from worldvla_ros.safety.limits import Reason


def press_estop(loop):
    loop.estop.set(True, loop.now)
    loop.controller.idle(loop.now, loop.now)


def release_estop(loop):
    """Release and reset it, and start again, as it does not by itself."""
    was_locked = loop.estop.locked
    loop.estop.set(False, loop.now)
    assert loop.estop.reset(loop.now)
    if was_locked:
        assert loop.controller.instruction == ''
        loop.controller.set_instruction('go')


def pause(loop):
    loop.controller.set_paused(True)


def go_on(loop):
    loop.controller.set_paused(False)


def meet_conflict(loop):
    loop.controller.set_conflict(True)


def end_conflict(loop):
    loop.controller.set_conflict(False)


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
    """Let the camera's stamps run ahead."""
    loop.now += SECOND
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
