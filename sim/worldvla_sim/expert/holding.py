# SPDX-License-Identifier: Apache-2.0
"""Take hold of something as a reaction: what to do follows from the present state alone.

A policy that has the arm for a while leaves it anywhere, and it learns from labels that must not
contradict each other. So nothing here waits or remembers how it got where it is: every step asks
where the gripper is relative to the grasp, and whether the fingers move.
"""

from collections.abc import Sequence

import numpy as np

from worldvla_sim.expert.grasps import Grasp
from worldvla_sim.expert.robot import CLOSED, OPEN, Robot
from worldvla_sim.expert.skills import HOVER, cruising_height

NEAR = 0.03  # [m] beside the approach, from which it is corrected at the present height
AT_GRASP, BY_GRASP = 0.015, 0.02  # [m] from a grasp: where the fingers close, or stopped there
FACING, HALF_FACING = 0.12, 0.2  # [rad] to the wanted axes: before a grasp, and around it
BELOW = 0.02  # [m] under the height to go at, from which the gripper first rises
OPENED = 0.068  # [m] between the pads; fully open is 0.078 to 0.080
EMPTY = 0.005  # [m] between the pads that closed on nothing; a bowl's wall keeps 7 mm
AJAR = 0.06  # [m] between the pads: less is closing, or closed on something
STILL = 0.01  # [m/s] of a finger: slower than that it is at rest, faster it moves
_SQUEEZE = 0.014  # [m] from a finger to where it is sent: 14 N, more than closing freely takes
_FUNNEL = 0.010  # [m] beside the approach, from which the gripper goes straight to the grasp
_EDGE, _TURNED_EDGE = 0.010, 0.1  # [m], [rad] over which going on becomes staying, or rising
_CONE = 0.08  # [m] beside the approach from above, where it is HOVER before the grasp
_COLUMN, _COLUMN_STEEPNESS = 0.012, 8.0  # [m] beside it, from where other obstacles count; rise
_RISING = 0.015  # [m] under the height to go at, over which going sideways begins
_LOWEST = 0.005  # [m] before where the finger tips reach what they take: the cone's tip
_AHEAD = 0.025  # [m] on the approach: near enough that it is not left before it is corrected
_CORRECTION = 0.005  # [m] towards the grasp while the fingers close; what blocks it is not pushed
_FIRM = 0.02  # [m] likewise
_SWING = 0.05  # [m/s] of a hand that has just come before a grasp; it waits at twice that
_LEVEL = -0.5  # z of an approach that comes from the side rather than from above
_BACK_OFF = 0.15  # [m] from a grasp that is approached from the side: left the way it is entered


def split(offset: np.ndarray, direction: np.ndarray) -> tuple[float, float]:
    """Split an offset into the length across a unit direction and the part along it [m]."""
    along = float(offset @ direction)
    return float(np.linalg.norm(offset - along * direction)), along


def go(robot: Robot, position: np.ndarray, gripper: float, speed: float = 1.0) -> np.ndarray:
    """Return the action towards a place and the robot's wanted axes, (7,)."""
    robot.gripper = gripper
    return robot.towards(position, speed)


def over(robot: Robot, target: np.ndarray, height: float, clear: float | None = None
         ) -> np.ndarray:
    """Return the place to go to on the way to above a target, (3,) [m]: first straight up.

    :param clear: height [m] from which going sideways is safe; None: a little under `height`.
        Below, the less of the way is gone at once the deeper the gripper is.
    """
    position = robot.position
    clear = height - BELOW if clear is None else clear
    share = np.clip((position[2] - clear) / _RISING + 1.0, 0.0, 1.0)
    return np.append(position[:2] + share * (target - position)[:2], height)


def along_way(on_way: np.ndarray, end: np.ndarray, direction: np.ndarray, missed: float
              ) -> np.ndarray:
    """Return the place to go to beside a way that is straight and narrow, (3,) [m].

    To its end on the way, sideways onto it beside it, and back a little farther off: one becomes
    the other by degrees, for a learner that cannot see where it would be the opposite.

    :param on_way: the nearest place on the way, (3,) [m].
    :param missed: how far beside the way the hand is, in parts of what is near enough.
    """
    on = float(np.clip(1.5 - missed, -1.0, 1.0))
    return on_way + max(0.0, on) * (end - on_way) + min(0.0, on) * _AHEAD * direction


def approach_height(robot: Robot, target: np.ndarray, outside: float,
                    without: Sequence[str] = ()) -> float:
    """Height [m] to come to a target at: obstacles count the less, the nearer the hand is to it.

    :param outside: how far beside its way in the hand is [m]; from 0 down nothing is avoided.
    :param without: what is not in the way, as of `cruising_height`.
    """
    column = target[2] + _COLUMN_STEEPNESS * max(0.0, outside)
    return float(min(cruising_height(robot, target, without=without), column))


def leave(robot: Robot, move: np.ndarray) -> np.ndarray:
    """Open the fingers where the hand is, then move it away as it is turned; one action, (7,)."""
    robot.rotation = robot.axes
    clear = robot.opening > OPENED
    return go(robot, robot.position + (move if clear else 0.0), OPEN)


def squeezes(robot: Robot) -> bool:
    """Whether the fingers have come to rest on something and press it.

    Both together: a hand that moves what it holds moves it between the fingers, too, one opening
    and one closing. Asked one by one, what to do went to and fro there between one step and the
    next, and learners took the mean.
    """
    return bool(abs(robot.finger_speeds().sum()) < STILL
                and (robot.finger_gaps().sum() > 2 * _SQUEEZE
                     or robot.finger_targets().max() < 0.001))


def take_hold(robot: Robot, name: str, grasp: Grasp, *, firm: bool = False) -> np.ndarray:
    """Come before a grasp, go around what it holds, close; one action, (7,).

    :param name: object or fixture that is taken.
    :param firm: wait before the grasp until the hand swings no more, and stay there while the
        fingers close, also against a force; otherwise what blocks the hand is not pushed over.
    """
    scene, from_side = robot.scene, grasp.rotation[2, 2] > _LEVEL
    robot.turn_to(grasp.rotation)
    robot.aim_at(grasp.position)
    distance, turned = grasp.distance(robot.position), robot.turn_error()
    most = _FIRM if firm else _CORRECTION
    correction = np.clip(grasp.position - robot.position, -most, most)
    if scene.pinched(name) and (distance < BY_GRASP or robot.opening < 0.065):
        # Only what is fixed pulls a hand back; a rim on the table would be dragged along.
        return go(robot, robot.position + (firm and from_side) * correction, CLOSED)
    if turned < HALF_FACING and _shall_close(robot, distance, firm):
        return go(robot, robot.position + correction, CLOSED)
    if robot.opening < AJAR and scene.touching(name, 'gripper'):
        return go(robot, robot.position, OPEN)
    ahead = _along_approach(robot, grasp, turned, firm)
    if ahead is not None:
        return ahead
    if _is_tilted(robot, grasp):
        return go(robot, robot.position, OPEN)
    if from_side:
        return _enter_from_side(robot, grasp, turned, firm)
    return _come_down(robot, name, grasp, firm)


def _come_down(robot: Robot, name: str, grasp: Grasp, firm: bool) -> np.ndarray:
    """Come before a grasp from above, down a cone, without steps in what to do.

    A learner that is a centimetre wrong then does almost the right thing. While millimetres told
    coming down from rising at full speed, it learned the mean: to stay above.
    """
    # A leaning approach is beside a hand that is right above where it begins.
    lateral, before = grasp.approach(robot.position)
    (widest, _), hover = _way_in(grasp, before, firm), grasp.before(HOVER)
    beside = min(lateral, float(np.linalg.norm((hover - robot.position)[:2])))
    on_cone = _on_cone(grasp, beside)
    height = approach_height(robot, on_cone, beside - _COLUMN, without=[name])
    clear = max(grasp.before(grasp.clear)[2], height - BELOW)
    if lateral > widest and before < grasp.clear:
        missed = (lateral - widest) / _EDGE  # below 1: still sideways, and up the more slowly
        height = min(height, robot.position[2] + _AHEAD * missed)
        clear -= HOVER * max(0.0, 1.0 - missed)
    return go(robot, over(robot, on_cone, height, clear), OPEN)


def _enter_from_side(robot: Robot, grasp: Grasp, turned: float, firm: bool) -> np.ndarray:
    """Come before a grasp from the side, likewise; what misses it leaves as it came."""
    position = robot.position
    lateral, before = grasp.approach(position)
    on_cone = _on_cone(grasp, lateral)
    sideways = float(np.linalg.norm((grasp.before(HOVER) - position)[:2]))
    above = over(robot, on_cone, approach_height(robot, on_cone, sideways - 2 * NEAR))
    widest, turn = _way_in(grasp, before, firm)
    missed = float(np.clip(max((lateral - widest) / _EDGE, (turned - turn) / _TURNED_EDGE - 1.0),
                           0.0, 1.0))
    out = (missed * (position - _AHEAD * grasp.rotation[:, 2])
           + (1.0 - missed) * grasp.before(before))
    inside = float(np.clip(min((grasp.clear - before) / _EDGE,
                               (_BACK_OFF - grasp.distance(position)) / NEAR), 0.0, 1.0))
    return go(robot, inside * out + (1.0 - inside) * above, OPEN)


def _along_approach(robot: Robot, grasp: Grasp, turned: float, firm: bool) -> np.ndarray | None:
    """Go on along the approach where the gripper is on it; None where it is not."""
    lateral, before = grasp.approach(robot.position)
    (widest, turn), lowest = _way_in(grasp, before, firm), grasp.clear + _LOWEST
    if lateral >= widest or before >= HOVER + 0.015 or robot.opening <= OPENED:
        return None
    facing = np.clip((turn - turned) / _TURNED_EDGE + 1.0, 0.0, 1.0)
    ahead = _AHEAD * facing * min(1.0, (widest - lateral) / _EDGE)
    if firm and before > grasp.clear:  # past here it does not wait any more
        waits = np.clip(robot.speed() / _SWING - 1.0, 0.0, 1.0) * min(
            1.0, (before - grasp.clear) / (2 * _LOWEST))
        ahead, lowest = ahead * (1.0 - waits), lowest + waits * _LOWEST
    return go(robot, grasp.before(max(0.0, min(before, lowest) - ahead)), OPEN, 0.8)


def _on_cone(grasp: Grasp, beside: float) -> np.ndarray:
    """Return the place before a grasp to go to from so far beside its approach, (3,) [m]."""
    share = np.clip((beside - _FUNNEL) / (_CONE - _FUNNEL), 0.0, 1.0)
    lowest = grasp.clear + _LOWEST
    return grasp.before(lowest + share * (HOVER - lowest))


def _way_in(grasp: Grasp, before: float, firm: bool) -> tuple[float, float]:
    """How far beside the approach a gripper still goes on along it, if but slowly [m].

    And how far turned [rad] it goes on as fast as otherwise.
    """
    entering = before < grasp.clear
    width = max(grasp.air, 1.5 * _FUNNEL) if entering else grasp.air
    return width + (0.0 if firm else _EDGE / 2), HALF_FACING if entering else FACING


def _is_tilted(robot: Robot, grasp: Grasp) -> bool:
    """Whether the hand must turn first: tilting beside what is to be taken sweeps the fingers."""
    return bool(robot.axes[:, 2] @ grasp.rotation[:, 2] < np.cos(0.5)
                and grasp.distance(robot.position) > HOVER)


def _shall_close(robot: Robot, distance: float, firm: bool) -> bool:
    """Whether the gripper is where it closes: there, stopped there, or closing there."""
    if robot.opening < EMPTY:
        return False  # closed on nothing
    stopped = robot.opening > OPENED and robot.speed() < 0.02 and distance < BY_GRASP
    speeds = robot.finger_speeds()
    closing = distance < AT_GRASP and (
        (robot.opening < 0.07 and not (firm and speeds.max() > STILL))
        or speeds.max() < -STILL)
    return distance < 0.005 or stopped or closing
