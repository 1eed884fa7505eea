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

from worldvla_sim.expert.grasps import RIMS, Grasp, aligned, plan_grasp, way_out
from worldvla_sim.expert.holding import (
    AJAR,
    AT_GRASP,
    BELOW,
    EMPTY,
    FACING,
    HALF_FACING,
    OPENED,
    STILL,
    go,
    leave,
    over,
    split,
    squeezes,
    take_hold,
)
from worldvla_sim.expert.robot import CLOSED, OPEN, Robot, rotation_error
from worldvla_sim.expert.scene import UP, category
from worldvla_sim.expert.skills import Motion, cruising_height, destination, react

LIFT = 0.06  # [m] that a taken object rises before it moves sideways
LOWERING = 0.7  # of the greatest speed, when what is held comes down
# What is held comes to its place down a cone: the nearer it is, the lower. Without steps in what
# to do, a learner that is a centimetre wrong does almost the right thing; with a narrow shaft to
# come down it learned to stay above its end.
_COMING_DOWN = 0.05  # [m] beside the place, from where the cone is followed
BESIDE, STEEPNESS = 0.010, 3.0  # [m] at the place's height; height per distance beside that
_DROP = 0.015  # [m] that what is held may fall to its place
_FAST = 0.05  # [m/s] of an object that falls, rolls or is dragged
_AROUND = 0.09  # [m] from an object's origin to the grip site
_COMING = 0.2  # [m] from a planned grasp: within, a hand may be beside another point of a rim
_PUSHED, _TURNED = 0.015, 0.1  # [m], [rad] that make a planned grasp void


@dataclass(frozen=True, eq=False)
class Plan:
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
    return (yield from place(robot, Placing(robot, name, target, offset, fingers)))


def place(robot: Robot, placing: 'Placing') -> Motion:
    """Act until what the goal wants of an object holds and the hand has let go and left."""
    wanted = [predicate for predicate in robot.scene.goal if predicate[1] == placing.name]

    def action() -> np.ndarray | None:
        if placing.is_let_go() and all(robot.scene.holds(predicate) for predicate in wanted):
            return placing.retreat() if placing.is_around() else None
        return placing.action()

    return (yield from react(action))


class Placing:
    """Decides one action at a time on the way of an object from where it lies to its place.

    Skills that set things down in another way override what is other about them.
    """

    _down = -UP  # direction in which what is held comes to its place, (3,)
    _retreat = 0.1 * UP  # [m] from what was let go, (3,)
    _placed_within = 0.014  # [m] beside its place, where the gripper may let go
    _let_go_within = 0.03  # [m] beside its place, where an object counts as let go

    def __init__(self, robot: Robot, name: str, target: str, offset: Sequence[float],
                 fingers: Sequence[float] | None = None) -> None:
        self._robot, self._scene, self.name, self._target = robot, robot.scene, name, target
        self._offset = np.asarray(offset, dtype=float)
        self._final = None if fingers is None else aligned(np.asarray(fingers, float), -UP)
        self._plan: Plan | None = None

    @property
    def _goal(self) -> np.ndarray:
        """Where the object's origin shall be let go, (3,) [m]."""
        return self._scene.position(self._target) + self._offset

    def _place(self) -> np.ndarray:
        """Where the gripper must be for that, (3,) [m]."""
        return destination(self._robot, self.name, self._goal)

    def _beside(self) -> float:
        """Horizontal distance of the object to where it shall be let go [m]."""
        return float(np.linalg.norm((self._goal - self._scene.position(self.name))[:2]))

    def is_let_go(self) -> bool:
        """Whether the object is near its goal and out of the gripper."""
        return (self._beside() < 0.15 and self._robot.opening > AJAR
                and not self._scene.pinched(self.name))

    def is_around(self) -> bool:
        """Whether the gripper is where it could hold the object."""
        away = self._robot.position - self._scene.position(self.name)
        return float(np.linalg.norm(away)) < _AROUND

    def retreat(self) -> np.ndarray:
        """Open, then go away from what was let go."""
        return leave(self._robot, self._retreat)

    def action(self) -> np.ndarray:
        """Return what to do now, (7,) controller input."""
        pinched = self._scene.pinched(self.name)
        self._robot.rotation = self._robot.axes  # to stay as it is, unless told otherwise below
        if pinched and self._is_at_place():
            return go(self._robot, self._robot.position, OPEN)
        if pinched and self._is_blocked():
            return go(self._robot, self._place(), OPEN, LOWERING)
        if pinched and squeezes(self._robot):
            return self._carry()
        if self._is_released():
            return self.retreat()
        if not self._replan():
            return self._back_off()
        assert self._plan is not None, 'planned before'
        return take_hold(self._robot, self.name, self._tracked(self._plan))

    def _is_at_place(self) -> bool:
        lateral, above = split(self._place() - self._robot.position, self._down)
        return lateral < self._placed_within and above < 0.008

    def _is_blocked(self) -> bool:
        """Whether something below stops the hand or what it holds right above its place.

        A stretched arm stops there, too, and a hand that rests a centimetre above may let go.
        """
        lateral, above = split(self._place() - self._robot.position, self._down)
        if lateral > 0.02 or above < 0.0:
            return False
        rests, met = self._robot.speed() < 0.005, self._scene.meets_obstacle(self.name)
        return (rests and (met or above < _DROP)) or (
            met and bool(self._robot.finger_gaps().max() < 0.003))

    def _is_released(self) -> bool:
        """Whether the gripper is still around what it has just let go at its place."""
        fallen = self._goal[2] - self._scene.position(self.name)[2]
        return bool(self._beside() < self._let_go_within and -0.03 < fallen < 0.14
                    and self.is_around())

    def _carry(self) -> np.ndarray:
        """Lift what is held, bring it above its place, and lower it."""
        robot, position = self._robot, self._robot.position
        place = self._place()
        robot.aim_at(self._goal)
        robot.rotation = self._kept_rotation()
        if (move := self._way_out()) is not None:
            return go(self._robot, position + move, CLOSED)
        lateral, above = split(place - position, -UP)
        if lateral > _COMING_DOWN:
            lifted = place[2] if self._plan is None else self._plan.grasp.position[2] + LIFT
            height = cruising_height(robot, place, held=[self.name], lowest=lifted)
            if position[2] > height - BELOW:
                self._turn_to_final()
            return go(self._robot, over(self._robot, place, height), CLOSED)
        self._turn_to_final()
        on_cone = max(0.0, lateral - BESIDE) * STEEPNESS
        if robot.turn_error() > FACING:
            on_cone = max(on_cone, above)
        return go(self._robot, place + on_cone * UP, CLOSED, LOWERING)

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
        moved = self._scene.position(self.name) - plan.position
        if np.linalg.norm((plan.way_out - moved)[:2]) < 0.01:
            self._plan = Plan(plan.grasp, plan.position, plan.axes, np.zeros(3))
            return None
        if moved[2] < plan.way_out[2] - 0.007 and np.linalg.norm(moved[:2]) < 0.01:
            return plan.way_out[2] * UP
        return (plan.way_out - moved) * [1.0, 1.0, 0.0]

    def _replan(self) -> bool:
        """Keep or make the plan of a grasp; False while the object moves too much for one."""
        scene, plan = self._scene, self._plan
        position, axes = scene.position(self.name), scene.axes(self.name)
        if (plan is not None and np.linalg.norm(position - plan.position) < _PUSHED
                and np.linalg.norm(rotation_error(axes, plan.axes)) < _TURNED):
            if self._is_beside(plan):
                grasp = self._grasp()
                self._plan = replace(plan, grasp=replace(
                    grasp, position=grasp.position + plan.position - position))
            return True
        if plan is not None and (scene.pinched(self.name) or self._is_closing(plan)):
            return True
        if scene.speed(self.name) > _FAST:
            return False
        self._plan = Plan(self._grasp(), position, axes, way_out(scene, self.name))
        return True

    def _is_beside(self, plan: Plan) -> bool:
        """Whether the hand came to a rim otherwise than planned: where it is may be as good."""
        robot, grasp = self._robot, self._tracked(plan)
        if (category(self.name) not in RIMS or robot.opening < OPENED
                or np.linalg.norm(grasp.position - robot.position) > _COMING):
            return False
        robot.turn_to(grasp.rotation)
        return (grasp.approach(robot.position)[0] > AT_GRASP
                or robot.turn_error() > HALF_FACING)

    def _grasp(self) -> Grasp:
        """Plan how to take the object as it lies now."""
        return plan_grasp(self._robot, self.name)

    def _is_closing(self, plan: Plan) -> bool:
        """Whether the fingers are about to close on the object, which may move it."""
        return bool(self._tracked(plan).distance(self._robot.position) < AT_GRASP
                    and EMPTY < self._robot.opening < OPENED
                    and self._robot.finger_speeds().max() < -STILL)

    def _tracked(self, plan: Plan) -> Grasp:
        """Return the planned grasp of the object where it is now."""
        moved = self._scene.position(self.name) - plan.position
        return replace(plan.grasp, position=plan.grasp.position + moved)

    def _back_off(self) -> np.ndarray:
        """Wait with open fingers, above what still moves."""
        robot = self._robot
        height = robot.position[2] - self._scene.position(self.name)[2]
        return go(self._robot, robot.position + (0.05 * UP if height < 0.15 else 0.0), OPEN)
