# SPDX-License-Identifier: Apache-2.0
"""Skills that set things down in unusual ways: sliding, laying on a slope, going under a roof.

Reactions, as `picking.Placing` is.
"""

from dataclasses import replace

import numpy as np
from scipy.spatial.transform import Rotation

from worldvla_sim.expert.grasps import Grasp, aligned, rim_point
from worldvla_sim.expert.holding import FACING, HALF_FACING, NEAR, go, over, split
from worldvla_sim.expert.picking import LIFT, Placing, Plan, place
from worldvla_sim.expert.robot import CLOSED, Robot
from worldvla_sim.expert.scene import UP
from worldvla_sim.expert.skills import Motion, cruising_height, destination

_BOTTLE_GRIP = 0.06  # [m] above a bottle's bottom
_DRAG = 0.009  # [m] above the grasp, so that a rim is drawn along and not pressed onto the table
_ON_RIM = 0.035  # [m] between the pads on a plate's rim, or about to be; it slips through them
_STRIDE = 0.01  # [m] ahead of the hand that slides something: 0.6 of full speed
_TILTING = 0.05  # [m] beside the rack's lip, from where a bottle is tilted
_LEAN_TO_TAKE, _LEAN_TO_ENTER = 0.4, 0.85  # [rad] of the hand from straight down
_MICROWAVE_FLOOR = 0.016  # [m] z of the cavity's floor in the microwave's frame
_DOORSTEP = -0.22  # [m] of a mug before the cavity's middle, where it begins to go in
_INSIDE = -0.034  # [m] likewise, where it is let go
_CORRIDOR = 0.02  # [m] beside the way in


class Sliding(Placing):
    """Slides an object over the table to a region, held by its rim but not lifted."""

    _let_go_within = 0.006
    _firm, _thinnest = True, 0.012

    @property
    def _goal(self) -> np.ndarray:
        x, y, _ = self._scene.position(self._target)
        return np.array([x, y, self._scene.position(self.name)[2]])

    def _tracked(self, plan: Plan) -> Grasp:
        """Follow the object over the table, not upwards: a rim that is taken tilts."""
        grasp = super()._tracked(plan)
        return replace(grasp, position=np.append(grasp.position[:2], plan.grasp.position[2]))

    def _is_pinched(self) -> bool:
        """Whether the rim is between the fingers; dragged, it often touches only one of them."""
        robot, plan = self._robot, self._plan
        return (plan is not None and self._thinnest < robot.opening < _ON_RIM
                and self._tracked(plan).distance(robot.position) < NEAR)

    def _is_firm(self) -> bool:
        """One sees that the rim is between the fingers, but not what they feel."""
        return True

    def _is_at_place(self) -> bool:
        return self._beside() < self._let_go_within

    def _carry(self) -> np.ndarray:
        assert self._plan is not None, 'see _is_pinched'
        self._plan = replace(self._plan, grasp=self._tracked(self._plan),
                             position=self._scene.position(self.name),
                             axes=self._scene.axes(self.name))
        position = self._robot.position
        way = (self._place() - position)[:2]
        way *= min(1.0, _STRIDE / max(float(np.linalg.norm(way)), 1e-9))  # leaves z its share
        self._robot.rotation = self._kept_rotation()
        height = self._plan.grasp.position[2] + _DRAG
        return go(self._robot, np.append(position[:2] + way, height), CLOSED)


class Laying(Placing):
    """Lays a bottle on a sloping rack, its bottom against the lower lip.

    The region's z axis points up the slope and its -y axis away from the shelf.
    """

    def __init__(self, robot: Robot, name: str, rack: str, region: str) -> None:
        super().__init__(robot, name, region, (0.0, 0.0, 0.0))
        axes = self._scene.axes(region)
        self._up_slope, self._down = axes[:, 2], axes[:, 1]
        uphill = self._up_slope * [1, 1, 0] / np.linalg.norm(self._up_slope[:2])
        self._taking = aligned(self._scene.axes(rack)[:, 0], uphill - UP)

    def _over_lip(self, lift: float) -> np.ndarray:
        lip = self._scene.position(self._target) + 0.012 * self._up_slope
        return lip - lift * self._down

    @property
    def _goal(self) -> np.ndarray:
        return self._over_lip(0.014)

    def _grasp(self) -> Grasp:
        bottle = self._scene.axes(self.name)[:, 2]
        return Grasp(self._scene.position(self.name) + _BOTTLE_GRIP * bottle, self._taking)

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
        robot, position = self._robot, self._robot.position
        before = destination(robot, self.name, self._over_lip(0.06))
        if self._beside() > _TILTING:
            robot.rotation = self._kept_rotation()
            height = cruising_height(robot, before, held=[self.name], lowest=before[2] + 0.03)
            return go(robot, over(robot, before, height), CLOSED)
        tilt = self._tilt()
        robot.rotation = tilt.as_matrix() @ robot.axes
        lateral, _ = split(before - position, self._down)
        if lateral < 0.012 and tilt.magnitude() < FACING:
            return go(robot, self._place(), CLOSED, 0.6)
        return go(robot, before, CLOSED)


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
        if (lateral < _CORRIDOR and before < _INSIDE - _DOORSTEP + 0.02
                and robot.turn_error() < HALF_FACING):
            return go(robot, self._place(), CLOSED, 0.6)
        doorstep = destination(robot, self.name, self._at(_DOORSTEP, 0.037))
        beside = float(np.linalg.norm((doorstep - position)[:2]))
        height = cruising_height(robot, doorstep, held=[self.name],
                                 lowest=0.0 if self._plan is None
                                 else self._plan.grasp.position[2] + LIFT)
        if beside < 0.02:
            return go(robot, doorstep, CLOSED)
        return go(robot, over(robot, doorstep, height), CLOSED)


def slide(robot: Robot, name: str, target: str) -> Motion:
    """Slide an object over the table to a region."""
    return (yield from place(robot, Sliding(robot, name, target, (0.0, 0.0, 0.0))))


def lay_on_rack(robot: Robot, name: str, rack: str, region: str) -> Motion:
    """Lay a bottle on a sloping rack."""
    return (yield from place(robot, Laying(robot, name, rack, region)))


def put_in_microwave(robot: Robot, name: str, microwave: str, region: str) -> Motion:
    """Set a mug down inside a microwave."""
    return (yield from place(robot, Housing(robot, name, microwave, region)))
