# SPDX-License-Identifier: Apache-2.0
"""Skills that set things down in unusual ways: sliding, laying on a slope, going under a roof.

Reactions, as `picking.Placing` is.
"""

from collections.abc import Sequence

import numpy as np
from scipy.spatial.transform import Rotation

from worldvla_sim.expert.grasps import Grasp, aligned, leaning, rim_point
from worldvla_sim.expert.holding import (
    BELOW,
    FACING,
    HALF_FACING,
    along_way,
    approach_height,
    go,
    over,
    split,
)
from worldvla_sim.expert.picking import BESIDE, LIFT, LOWERING, STEEPNESS, Placing, place
from worldvla_sim.expert.robot import CLOSED, Robot
from worldvla_sim.expert.scene import UP, Scene
from worldvla_sim.expert.skills import HOVER, Motion, cruising_height, destination, react

# By its neck: its body leaves a finger half the air, and a learner knocks it over.
_BOTTLE_GRIP, _NECK_AIR = 0.105, 0.020  # [m] above a bottle's bottom; as of `Grasp`
# Closed finger tips reach a plate's floor with the grip site 17 mm above its origin. Sent lower,
# they press on it: unpressed they climb the rim, and pressed harder the plate hardly moves.
_PRESSED = 0.008  # [m] of the grip site above a plate's origin
_UNDER_RIM, _SINKING = 0.025, 0.010  # [m] likewise, where drawing is at full speed; begins above
_INSIDE_RIM, _ON_PLATE = 0.020, 0.055  # [m] beside its middle: straight down, and still on it
_BEHIND = 0.012  # [m] behind its middle, where the fingers come down: they end up before it
_STRIDE, _RISE = 0.0155, 0.05  # [m] ahead of the hand: at full speed
_SLID = 0.008  # [m] beside the region's middle
_TILTING = 0.05  # [m] beside its place on the rack, from where a bottle is tilted
# Far enough from the lip that a bottle which comes down centimetres off still lies above it.
_UP_SLOPE = 0.036  # [m] of a bottle that is laid, from the region's middle
_ABOVE_RACK = 0.046  # [m] above its place, until a bottle is parallel to the slope
_TILT_SPAN = 0.3  # [rad] over which it comes down from there
_LEAN_TO_TAKE, _LEAN_TO_ENTER = 0.4, 0.85  # [rad] of the hand from straight down
_MICROWAVE_FLOOR = 0.016  # [m] z of the cavity's floor in the microwave's frame
_DOORSTEP = -0.22  # [m] of a mug before the cavity's middle, where it begins to go in
_INSIDE = -0.034  # [m] likewise, where it is let go
_CORRIDOR = 0.02  # [m] beside the way in


class Laying(Placing):
    """Lays a bottle on a sloping rack, its bottom above the lower lip.

    The region's z axis points up the slope and its -y axis away from the shelf. A bottle counts
    from the lip to 10 cm up the slope; below, its bottom lies on the lip.
    """

    _placed_within = 0.025

    def __init__(self, robot: Robot, name: str, rack: str, region: str) -> None:
        super().__init__(robot, name, region, (0.0, 0.0, 0.0))
        axes = self._scene.axes(region)
        self._up_slope, self._down = axes[:, 2], axes[:, 1]
        uphill = self._up_slope * [1, 1, 0] / np.linalg.norm(self._up_slope[:2])
        self._taking = aligned(self._scene.axes(rack)[:, 0], uphill - UP)

    @property
    def _goal(self) -> np.ndarray:
        shelf = self._scene.position(self._target) + _UP_SLOPE * self._up_slope
        return shelf - 0.014 * self._down

    def _grasp(self) -> Grasp:
        bottle = self._scene.axes(self.name)[:, 2]
        return Grasp(self._scene.position(self.name) + _BOTTLE_GRIP * bottle, self._taking,
                     air=_NECK_AIR)

    def _tilt(self) -> Rotation:
        """Shortest rotation that lays the bottle parallel to the slope."""
        bottle = self._scene.axes(self.name)[:, 2]
        axis = np.cross(bottle, self._up_slope)
        angle = np.arctan2(np.linalg.norm(axis), bottle @ self._up_slope)
        return Rotation.from_rotvec(angle * axis / max(float(np.linalg.norm(axis)), 1e-9))

    def _is_at_place(self) -> bool:
        return super()._is_at_place() and self._tilt().magnitude() < HALF_FACING

    def _is_blocked(self) -> bool:
        return super()._is_blocked() and self._tilt().magnitude() < HALF_FACING

    def _carry(self) -> np.ndarray:
        robot, position, place = self._robot, self._robot.position, self._place()
        if self._beside() > _TILTING:
            before = place - _ABOVE_RACK * self._down
            robot.rotation = self._kept_rotation()
            height = cruising_height(robot, before, held=[self.name], lowest=before[2] + 0.03)
            return go(robot, over(robot, before, height), CLOSED)
        tilt = self._tilt()
        robot.rotation = tilt.as_matrix() @ robot.axes
        lateral, _ = split(place - position, self._down)
        beside = max(0.0, lateral - BESIDE) * STEEPNESS / _ABOVE_RACK
        above = max(beside, (tilt.magnitude() - FACING) / _TILT_SPAN)
        on_cone = place - np.clip(above, 0.0, 1.0) * _ABOVE_RACK * self._down
        return go(robot, on_cone, CLOSED, LOWERING)


class Housing(Placing):
    """Sets a mug down inside a microwave, bottom first.

    An upright hand would hit the roof before the mug is inside, and a hand that leans far cannot
    get at the rim. So the hand leans a little when it takes the mug and more, with the mug, when
    it goes in; let go, the mug rights itself.
    """

    _let_go_within = 0.05

    def __init__(self, robot: Robot, name: str, microwave: str, region: str) -> None:
        super().__init__(robot, name, region, (0.0, 0.0, 0.0))
        self._sideways, self._down, _ = self._scene.axes(microwave).T
        self._floor = self._scene.position(region) * [1, 1, 0] + [
            0, 0, self._scene.position(microwave)[2] + _MICROWAVE_FLOOR]
        self._retreat = -0.2 * self._down + 0.03 * UP

    def _leaning(self, angle: float) -> np.ndarray:
        return aligned(self._sideways, np.sin(angle) * self._down - np.cos(angle) * UP)

    def _at(self, depth: float, lift: float) -> np.ndarray:
        return self._floor + depth * self._down - 0.03 * self._sideways + lift * UP

    @property
    def _goal(self) -> np.ndarray:
        return self._at(_INSIDE, 0.035)

    def _grasp(self) -> Grasp:
        return Grasp(rim_point(self._scene, self.name, self._sideways, depth=0.010),
                     self._leaning(_LEAN_TO_TAKE))

    def _is_at_place(self) -> bool:
        lateral, before = split(self._place() - self._robot.position, self._down)
        return lateral < _CORRIDOR and before < 0.008

    def _is_blocked(self) -> bool:
        lateral, before = split(self._place() - self._robot.position, self._down)
        return lateral < _CORRIDOR and before < 0.03 and self._robot.speed() < 0.005

    def _carry(self) -> np.ndarray:
        robot, position = self._robot, self._robot.position
        robot.turn_to(self._leaning(_LEAN_TO_ENTER))
        lateral, before = split(self._place() - position, self._down)
        if (lateral < 2 * _CORRIDOR and before < _INSIDE - _DOORSTEP + 0.02
                and robot.turn_error() < HALF_FACING):
            place = self._place()
            return go(robot, along_way(place - before * self._down, place, self._down,
                                       lateral / _CORRIDOR), CLOSED, 0.6)
        doorstep = destination(robot, self.name, self._at(_DOORSTEP, 0.037))
        beside = float(np.linalg.norm((doorstep - position)[:2]))
        height = cruising_height(robot, doorstep, held=[self.name],
                                 lowest=0.0 if self._plan is None
                                 else self._plan.grasp.position[2] + LIFT)
        if beside < 0.02:
            return go(robot, doorstep, CLOSED)
        return go(robot, over(robot, doorstep, height), CLOSED)


def slide(robot: Robot, name: str, target: str, *, detour: Sequence[float] = (0, 0)) -> Motion:
    """Slide a plate over the table to a region: closed fingers press on it and draw it along.

    Anywhere inside its rim will do, which a learner that is centimetres off still finds.

    :param detour: from the region [m]: by way of there it comes, unless it is on that side of it.
    """
    scene, via = robot.scene, np.asarray(detour, dtype=float)
    length = max(float(np.linalg.norm(via)), 1e-9)

    def action() -> np.ndarray | None:
        hand, plate, goal = robot.position, scene.position(name), scene.position(target)
        way, above = (goal - plate)[:2], float(hand[2] - plate[2])
        if np.linalg.norm(way) < _SLID:
            robot.rotation = robot.axes
            return go(robot, hand + _RISE * UP, CLOSED) if above < HOVER else None
        off_side = float(np.linalg.norm(way - (way @ via) * via / length**2))
        way += via * min(1.0, off_side / length)
        forward = way / max(float(np.linalg.norm(way)), _STRIDE)
        if np.linalg.norm((hand - plate)[:2]) < _ON_PLATE and above < _UNDER_RIM + _SINKING:
            robot.aim_at(goal)
            robot.rotation = _broadside(scene, plate, -robot.axes[:, 1])
            share = np.clip((_UNDER_RIM + _SINKING - above) / _SINKING, 0.0, 1.0)
            return go(robot, np.append(hand[:2] + share * _STRIDE * forward, plate[2] + _PRESSED),
                      CLOSED)
        robot.rotation = _broadside(scene, plate, forward)
        return _come_onto(robot, name, np.append(plate[:2] - _BEHIND * forward, plate[2]))

    return (yield from react(action))


def _broadside(scene: Scene, place: np.ndarray, forward: np.ndarray) -> np.ndarray:
    """Gripper axes (3, 3) with the fingers side by side across a direction of motion.

    The hand is narrowest along it, and of its two sides turns the one where the arm is forwards.
    """
    return leaning(scene, place, np.arctan2(forward[1], forward[0]) - np.pi)


def _come_onto(robot: Robot, name: str, place: np.ndarray) -> np.ndarray:
    """Bring closed fingers down a cone to a place (3,) [m] on an object."""
    robot.aim_at(place)
    beside = float(np.linalg.norm((robot.position - place)[:2]))
    cone = _PRESSED + STEEPNESS * max(0.0, beside - _INSIDE_RIM)
    target = place + min(cone, HOVER) * UP
    height = approach_height(robot, target, beside - _ON_PLATE, without=[name])
    clear = max(height - BELOW, place[2] + _UNDER_RIM + _SINKING)
    return go(robot, over(robot, target, height, clear), CLOSED)


def lay_on_rack(robot: Robot, name: str, rack: str, region: str) -> Motion:
    """Lay a bottle on a sloping rack."""
    return (yield from place(robot, Laying(robot, name, rack, region)))


def put_in_microwave(robot: Robot, name: str, microwave: str, region: str) -> Motion:
    """Set a mug down inside a microwave."""
    return (yield from place(robot, Housing(robot, name, microwave, region)))
