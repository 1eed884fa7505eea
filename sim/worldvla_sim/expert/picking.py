# SPDX-License-Identifier: Apache-2.0
"""Pick and place as a reaction: what to do follows from the present state alone.

A policy that has the arm for a while leaves it anywhere, and it learns from labels that must not
contradict each other. So nothing here waits or remembers how it got where it is: every step asks
what is held, where the gripper is relative to the grasp, and whether the fingers move. Only the
planned grasp is kept, relative to the object, until the object was pushed or turned.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from worldvla_sim.expert.grasps import Grasp, aligned, plan_grasp, way_out
from worldvla_sim.expert.robot import CLOSED, OPEN, Robot, rotation_error
from worldvla_sim.expert.scene import UP
from worldvla_sim.expert.skills import (
    HOVER,
    Motion,
    cruising_height,
    destination,
    rise,
)

PATIENCE = 450  # [steps] after which a place that cannot be reached is given up
LIFT = 0.06  # [m] that a taken object rises before it moves sideways
_FUNNEL = 0.010  # [m] beside the approach, from which the gripper goes straight to the grasp
_NEAR = 0.03  # [m] beside the approach, from which it is corrected at the present height
_CLEAR = 0.055  # [m] before a grasp where the finger tips are above what they will hold
_AHEAD = 0.025  # [m] on the approach: near enough that it is not left before it is corrected
_CORRECTION = 0.005  # [m] towards the grasp while the fingers close; what blocks it is not pushed
_OPENED = 0.068  # [m] between the pads; fully open is 0.078 to 0.080
_EMPTY = 0.005  # [m] between the pads that closed on nothing; a bowl's wall keeps 7 mm
_SQUEEZE = 0.014  # [m] from a finger to where it is sent: 14 N, more than closing freely takes
_FAST = 0.05  # [m/s] of an object that falls, rolls or is dragged
_AJAR = 0.06  # [m] between the pads: less is closing, or closed on something
_AT_GRASP, _BY_GRASP = 0.015, 0.02  # [m] from a grasp: where the fingers close, or stopped there
_STILL = 0.01  # [m/s] of a finger: slower than that it is at rest, faster it moves
_FACING, _HALF_FACING = 0.12, 0.2  # [rad] to the wanted axes: before a grasp, and around it
_BELOW = 0.02  # [m] under the height to go at, from which the gripper first rises
_LOWERING = 0.7  # of the greatest speed, when what is held comes down
_PUSHED, _TURNED = 0.015, 0.25  # [m], [rad] that make a planned grasp void


@dataclass(frozen=True, eq=False)
class _Plan:
    """A grasp, and how the object lay when it was planned."""

    grasp: Grasp
    position: np.ndarray  # (3,) [m] of the object
    axes: np.ndarray  # (3, 3) of the object
    way_out: np.ndarray  # (3,) [m] as of `grasps.way_out`; zero once it is out


def put(robot: Robot, name: str, target: str, *, offset: Sequence[float] = (0, 0, 0.012),
        fingers: Sequence[float] | None = None) -> Motion:
    """Take an object and set it down so that its origin is `offset` from the target's origin.

    :param offset: in the world frame [m]; its z is the height from which the object drops.
    :param fingers: direction along which the fingers close when the object is set down; None
        leaves the object turned as it was taken.
    """
    scene, placing = robot.scene, Placing(robot, name, target, offset, fingers)
    wanted = [predicate for predicate in scene.goal if predicate[1] == name]
    for _ in range(PATIENCE):
        if placing.is_let_go() and all(scene.holds(predicate) for predicate in wanted):
            yield from rise(robot, 0.07)
            return True
        yield placing.action()
    return False


class Placing:
    """Decides one action at a time on the way of an object from where it lies to its place."""

    def __init__(self, robot: Robot, name: str, target: str, offset: Sequence[float],
                 fingers: Sequence[float] | None = None) -> None:
        self._robot, self._scene, self._name, self._target = robot, robot.scene, name, target
        self._offset = np.asarray(offset, dtype=float)
        self._final = None if fingers is None else aligned(np.asarray(fingers, float), -UP)
        self._plan: _Plan | None = None

    @property
    def _goal(self) -> np.ndarray:
        """Where the object's origin shall be let go, (3,) [m]."""
        return self._scene.position(self._target) + self._offset

    def _place(self) -> np.ndarray:
        """Where the gripper must be for that, (3,) [m]."""
        return destination(self._robot, self._name, self._goal)

    def _beside(self) -> float:
        """Horizontal distance of the object to where it shall be let go [m]."""
        return float(np.linalg.norm((self._goal - self._scene.position(self._name))[:2]))

    def is_let_go(self) -> bool:
        """Whether the object is near its goal and out of the gripper."""
        return (self._beside() < 0.15 and self._robot.opening > _AJAR
                and not self._scene.pinched(self._name))

    def action(self) -> np.ndarray:
        """Return what to do now, (7,) controller input."""
        pinched = self._scene.pinched(self._name)
        if pinched and self._is_at_place():
            return self._go(self._robot.position, OPEN)
        if pinched and self._is_blocked():
            return self._go(self._place(), OPEN, _LOWERING)
        if pinched and self._is_held():
            return self._carry()
        if self._is_released():
            clear = self._robot.opening > _OPENED
            return self._go(self._robot.position + (0.1 * UP if clear else 0.0), OPEN)
        if not self._replan():
            return self._back_off()
        return self._take(pinched)

    def _go(self, position: np.ndarray, gripper: float, speed: float = 1.0) -> np.ndarray:
        self._robot.gripper = gripper
        return self._robot.towards(position, speed)

    def _is_held(self) -> bool:
        """Whether pinching fingers have come to rest and squeeze."""
        gap = self._robot.finger_gaps()
        return bool(np.abs(self._robot.finger_speeds()).max() < _STILL
                    and (gap.min() > _SQUEEZE or self._robot.finger_targets().max() < 0.001))

    def _is_at_place(self) -> bool:
        lateral, above = _split(self._place() - self._robot.position, -UP)
        return lateral < 0.014 and above < 0.008

    def _is_blocked(self) -> bool:
        """Whether something below stops the hand or what it holds right above its place."""
        lateral, above = _split(self._place() - self._robot.position, -UP)
        return (lateral < 0.02 and above > 0.0 and self._scene.meets_obstacle(self._name)
                and (self._robot.speed() < 0.005 or self._robot.finger_gaps().max() < 0.003))

    def _is_released(self) -> bool:
        """Whether the gripper is still around what it has just let go at its place."""
        fallen = self._goal[2] - self._scene.position(self._name)[2]
        around = np.linalg.norm(self._robot.position - self._scene.position(self._name)) < 0.09
        return bool(self._beside() < 0.03 and -0.03 < fallen < 0.14 and around)

    def _carry(self) -> np.ndarray:
        """Lift what is held, bring it above its place, and lower it."""
        robot, position = self._robot, self._robot.position
        place = self._place()
        robot.rotation = self._kept_rotation()
        if (move := self._way_out()) is not None:
            return self._go(position + move, CLOSED)
        lateral, above = _split(place - position, -UP)
        if lateral > _NEAR:
            lifted = place[2] if self._plan is None else self._plan.grasp.position[2] + LIFT
            height = cruising_height(robot, place, held=[self._name], lowest=lifted)
            if position[2] < height - _BELOW:
                return self._go(np.array([*position[:2], height]), CLOSED)
            self._turn_to_final()
            return self._go(np.array([*place[:2], height]), CLOSED)
        self._turn_to_final()
        if lateral < 0.006 + 0.08 * np.clip(above, 0.0, 0.1) and robot.turn_error() < _FACING:
            return self._go(place, CLOSED, _LOWERING)
        return self._go(np.array([*place[:2], max(position[2], place[2])]), CLOSED)

    def _kept_rotation(self) -> np.ndarray:
        """Axes to carry with: those of the planned grasp, unless it was taken otherwise."""
        robot = self._robot
        if self._plan is not None:
            robot.turn_to(self._plan.grasp.rotation)
            if self._final is not None or robot.turn_error() < 0.3:
                return robot.rotation
        return robot.axes

    def _turn_to_final(self) -> None:
        if self._final is not None:
            self._robot.turn_to(self._final)

    def _way_out(self) -> np.ndarray | None:
        """Return the next move from under what hangs over a held object, None when it is out."""
        plan = self._plan
        if plan is None or not plan.way_out.any():
            return None
        moved = self._scene.position(self._name) - plan.position
        if np.linalg.norm((plan.way_out - moved)[:2]) < 0.01:
            self._plan = _Plan(plan.grasp, plan.position, plan.axes, np.zeros(3))
            return None
        if moved[2] < plan.way_out[2] - 0.007 and np.linalg.norm(moved[:2]) < 0.01:
            return plan.way_out[2] * UP
        return (plan.way_out - moved) * [1.0, 1.0, 0.0]

    def _replan(self) -> bool:
        """Keep or make the plan of a grasp; False while the object moves too much for one."""
        scene, plan = self._scene, self._plan
        position, axes = scene.position(self._name), scene.axes(self._name)
        if (plan is not None and np.linalg.norm(position - plan.position) < _PUSHED
                and np.linalg.norm(rotation_error(axes, plan.axes)) < _TURNED):
            return True
        if plan is not None and self._is_closing(plan):
            return True
        if scene.speed(self._name) > _FAST:
            return False
        self._plan = _Plan(plan_grasp(scene, self._name), position, axes,
                           way_out(scene, self._name))
        return True

    def _is_closing(self, plan: _Plan) -> bool:
        """Whether the fingers are about to close on the object, which may move it."""
        return bool(self._tracked(plan).distance(self._robot.position) < _AT_GRASP
                    and _EMPTY < self._robot.opening < _OPENED
                    and self._robot.finger_speeds().max() < -_STILL)

    def _tracked(self, plan: _Plan) -> Grasp:
        """Return the planned grasp of the object where it is now."""
        moved = self._scene.position(self._name) - plan.position
        return replace(plan.grasp, position=plan.grasp.position + moved)

    def _back_off(self) -> np.ndarray:
        """Wait with open fingers, above what still moves."""
        robot = self._robot
        height = robot.position[2] - self._scene.position(self._name)[2]
        return self._go(robot.position + (0.05 * UP if height < 0.15 else 0.0), OPEN)

    def _take(self, pinched: bool) -> np.ndarray:
        """Come above the object, go down around it, close."""
        robot, plan = self._robot, self._plan
        assert plan is not None, 'planned before'
        grasp = self._tracked(plan)
        rotation = grasp.rotation
        robot.turn_to(rotation)
        lateral, before = _split(grasp.before(0.0) - robot.position, rotation[:, 2])
        distance = grasp.distance(robot.position)
        turned = robot.turn_error()
        if pinched and (distance < _BY_GRASP or robot.opening < 0.065):
            return self._go(robot.position, CLOSED)
        if turned < _HALF_FACING and self._shall_close(distance):
            correction = np.clip(grasp.position - robot.position, -_CORRECTION, _CORRECTION)
            return self._go(robot.position + correction, CLOSED)
        if robot.opening < _AJAR and self._scene.touching(self._name, 'gripper'):
            return self._go(robot.position, OPEN)
        width, turn = (
            (_FUNNEL, _FACING) if before > _CLEAR else (1.5 * _FUNNEL, _HALF_FACING))
        if (lateral < width and turned < turn and before < HOVER + 0.015
                and robot.opening > _OPENED):
            return self._go(grasp.before(max(0.0, before - _AHEAD)), OPEN, 0.8)
        if lateral < _NEAR and before > _CLEAR:
            return self._go(grasp.before(np.clip(before, _CLEAR + 0.005, HOVER)), OPEN)
        if robot.axes[:, 2] @ rotation[:, 2] < np.cos(0.5) and distance > HOVER:
            # Tilting sweeps the fingers sideways: do it here, not beside what is to be taken.
            return self._go(robot.position, OPEN)
        hover = grasp.before(HOVER)
        height = cruising_height(robot, hover)
        beside = float(np.linalg.norm((hover - robot.position)[:2]))
        if robot.position[2] < height - _BELOW and (beside > 0.02 or before < _CLEAR):
            return self._go(np.array([*robot.position[:2], height]), OPEN)
        return self._go(np.array([*hover[:2], height if beside > 0.02 else hover[2]]), OPEN)

    def _shall_close(self, distance: float) -> bool:
        """Whether the gripper is where it closes: there, stopped there, or closing there."""
        robot = self._robot
        if robot.opening < _EMPTY:
            return False  # closed on nothing
        stopped = robot.opening > _OPENED and robot.speed() < 0.02 and distance < _BY_GRASP
        closing = distance < _AT_GRASP and (robot.opening < 0.07
                                        or robot.finger_speeds().max() < -_STILL)
        return distance < 0.005 or stopped or closing


def _split(offset: np.ndarray, direction: np.ndarray) -> tuple[float, float]:
    """Split an offset into the length across a unit direction and the part along it [m]."""
    along = float(offset @ direction)
    return float(np.linalg.norm(offset - along * direction)), along
