# SPDX-License-Identifier: Apache-2.0
"""Where to take hold of an object: candidate grasps from its collision shape, scored by clearance.

Boxes, cans and bottles are taken across the middle. Bowls, mugs and the like are wider than the
gripper opens and are taken by the rim, at an angle where the hand touches nothing else.
"""

from dataclasses import dataclass, field, replace

import numpy as np
from scipy.spatial.transform import Rotation

from worldvla_sim.expert.robot import Robot, yawed
from worldvla_sim.expert.scene import Scene, category

MAX_WIDTH = 0.072  # [m] that fits between the fingers with some play; they open to 0.08
PALM_DEPTH = 0.034  # [m] from the grip site to the palm: how far an object may stick up
FINGER_DEPTH = 0.0125  # [m] that the finger tips reach beyond the grip site
COMFORTABLE_REACH = (0.42, 0.70)  # [m] from the robot's base, horizontally
LEAN_PER_METRE = 5.0  # [rad/m] out of that
MAX_LEAN = 0.5  # [rad]
_ANGLES = 16
_RIM_LEAN, _RIM_DEPTH = 0.35, 0.020  # [rad]; [m] of the grip site below a rim's edge
_POINT_COST = 0.05  # of one obstacle point inside the gripper
_APPROACH_SAMPLES = (0.0, 0.05, 0.10)  # [m] before the grasp
_SIDE_MARGIN = 0.015  # [m] of air wanted around an object that is moved aside
_DRAG_HEIGHT = 0.015  # [m]
_NO_OVERHANG, _SMALL_OVERHANG = 0.002, 0.010  # [m] beside, or over, an object's edge
_OVERHANG_MARGIN = 0.008  # [m] of air wanted when only an edge is under something
_ABOVE = 0.008  # [m] of air between finger tips and what they pass over to take it
_OPEN = 0.078  # [m] between the pads at least, when they are open
_AIR = (0.010, 0.020)  # [m] least and greatest of `Grasp.air`; a deep rim is caught anyway
_BESIDE_HAND = 0.10  # [m] from the hand, up to which the nearer of two points of a rim is better
_TURNED_HAND = 0.5  # [rad] from its axes, likewise
_NEARNESS = (0.10, 0.15)  # what it is worth to be where the hand is, and turned as it is there
_SAME_COLUMN = 0.003  # [m] between points one above the other

# Boxes around the open gripper in its own frame, lower and upper corner [m], measured from the
# collision meshes of robosuite's Panda: the two fingers, the hand, and link 6 above it.
_GRIPPER = np.array([[[0.030, -0.013, -0.05], [0.070, 0.013, 0.0125]],
                     [[-0.070, -0.013, -0.05], [-0.030, 0.013, 0.0125]],
                     [[-0.108, -0.035, -0.125], [0.108, 0.035, -0.026]],
                     [[-0.065, -0.155, -0.295], [0.065, 0.065, -0.125]]])


# The same of the finger outside a rim, below the rim's height and above it, with 2 mm of air.
_OUTER_FINGER = np.array([[[0.036, -0.012, -0.024], [0.060, 0.012, 0.0125]],
                          [[0.036, -0.012, -0.05], [0.068, 0.012, -0.024]]])
# A hand that comes down up to 2 cm beside the grasp of a rim catches it as well (tried on LIBERO's
# bowl), and what a learner cannot see should not decide what is right. Added to what `holding`
# allows everywhere, which is all the air that there is beside a can or the bottle.
_RIM_PLAY = (0.006, 0.004)  # [m] across the wall, where nothing else is near, and along it
_ASIDE = np.arange(0.0, 0.017, 0.004)  # [m] towards a rim's centre; the fingers close off centre


@dataclass(frozen=True)
class Rim:
    """A wall to pinch: a circle about an axis parallel to the object's z."""

    radius: float  # [m] of the wall's middle
    height: float  # [m] of its edge above the object's origin
    centre: tuple[float, float] = (0.0, 0.0)  # [m] of the circle; a mug's handle shifts its origin


RIMS = {
    'akita_black_bowl': Rim(0.047, 0.0515),
    'porcelain_mug': Rim(0.039, 0.109, centre=(0.016, 0.0)),
    'red_coffee_mug': Rim(0.039, 0.130, centre=(0.016, 0.0)),
    'white_yellow_mug': Rim(0.044, 0.103, centre=(0.016, 0.0)),
}
"""Objects that are taken by the rim; every other one is taken across the middle."""


@dataclass(frozen=True, eq=False)
class Grasp:
    """A pose of the open gripper around something to hold."""

    position: np.ndarray  # (3,) [m] of the grip site
    rotation: np.ndarray  # (3, 3) gripper axes as columns
    cost: float = 0.0  # lower is better; each obstacle point inside the gripper adds to it
    aside: np.ndarray = field(default_factory=lambda: np.zeros(3))
    """From `position` to where the open gripper comes down, (3,) [m]: beside a wall."""
    play: tuple[float, float] = (0.0, 0.0)
    """How far off along its x and y axes a gripper is as good as at `position` [m], either way."""
    clear: float = 0.055
    """Distance before it [m] from which the finger tips are above what they will hold."""
    air: float = 0.010
    """How far beside the approach [m] an open gripper still comes down around what it holds."""

    def before(self, distance: float) -> np.ndarray:
        """Return the point `distance` [m] back along the approach, (3,) [m]."""
        return self.position + self.aside - distance * self.rotation[:, 2]

    def distance(self, position: np.ndarray) -> float:
        """Distance [m] of a gripper from where the fingers may close: aside or at the grasp."""
        offset, length = position - self.position, float(np.linalg.norm(self.aside))
        share = np.clip(offset @ self.aside / length**2, 0.0, 1.0) if length else 0.0
        return float(np.linalg.norm(self._beyond_play(offset - share * self.aside)))

    def approach(self, position: np.ndarray) -> tuple[float, float]:
        """How far a gripper is beside the way to the grasp, and before its end, [m] each."""
        across, along, ahead = self._beyond_play(position - self.before(0.0))
        return float(np.hypot(across, along)), -float(ahead)

    def _beyond_play(self, offset: np.ndarray) -> np.ndarray:
        """Return an offset (3,) in the gripper's frame, less the play."""
        local = self.rotation.T @ offset
        play = np.array([*self.play, 0.0])
        return local - np.clip(local, -play, play)


def _obstruction(points: np.ndarray, position: np.ndarray, rotation: np.ndarray) -> float:
    """Cost of the obstacle points that the gripper touches on its last way to a grasp."""
    local = _around((points - position) @ rotation, _GRIPPER, max(_APPROACH_SAMPLES))
    approach = np.array([0.0, 0.0, 1.0])
    return _POINT_COST * sum(_touched(local + distance * approach, _GRIPPER)
                             for distance in _APPROACH_SAMPLES)


def _around(local: np.ndarray, boxes: np.ndarray, margin: float) -> np.ndarray:
    """Return the points (n, 3) that are inside what holds all boxes (m, 2, 3), and a margin."""
    lower, upper = boxes[:, 0].min(axis=0) - margin, boxes[:, 1].max(axis=0) + margin
    # Column by column: numpy's `all` and `max` along short rows take ten times as long.
    for axis in range(3):
        local = local[(local[:, axis] > lower[axis]) & (local[:, axis] < upper[axis])]
    return local


def _touched(local: np.ndarray, boxes: np.ndarray) -> int:
    """Count the points (n, 3) inside any of the boxes (m, 2, 3), all in the gripper's frame."""
    x, y, z = local.T
    inside = np.zeros(len(x), dtype=bool)
    for lower, upper in boxes:
        inside |= ((x > lower[0]) & (x < upper[0]) & (y > lower[1]) & (y < upper[1])
                   & (z > lower[2]) & (z < upper[2]))
    return int(inside.sum())


def _beside_wall(grasp: Grasp, radial: np.ndarray, obstacles: np.ndarray) -> Grasp:
    """Let a rim's grasp come down as near to the centre as its outer finger needs.

    A bowl in a drawer leaves less than a finger's width to the drawer's side.
    """
    outwards = grasp.rotation if grasp.rotation[:, 0] @ radial > 0 else (
        grasp.rotation @ np.diag([-1.0, -1.0, 1.0]))
    local = _around((obstacles - grasp.position) @ outwards, _OUTER_FINGER, max(_ASIDE))
    inwards = np.array([1.0, 0.0, 0.0])
    aside = min(_ASIDE, key=lambda move: _touched(local + move * inwards, _OUTER_FINGER))
    return replace(grasp, aside=-aside * outwards[:, 0],
                   play=(0.0 if aside else _RIM_PLAY[0], _RIM_PLAY[1]))


def _turning_cost(yaw: float) -> float:
    """Prefer little turning; a quarter turn costs as much as two obstacle points."""
    return 0.06 * abs(yaw)


def _out_of_reach(scene: Scene, position: np.ndarray) -> float:
    """Distance [m] by which a point is beyond (positive) or before (negative) what is in reach.

    An arm that reaches out of this with the hand upright is singular. Beyond, the elbow is
    stretched, and the controller does not get back; before, the hand hangs straight down from the
    forearm, and the joints on both sides of the wrist spin against each other.
    """
    distance = float(np.linalg.norm((position - scene.position('robot'))[:2]))
    nearest, farthest = COMFORTABLE_REACH
    return min(0.0, distance - nearest) + max(0.0, distance - farthest)


def leaning(scene: Scene, position: np.ndarray, yaw: float) -> np.ndarray:
    """Gripper axes at `yaw`; the fingers lean out, or in, where an upright hand does not reach."""
    outward = (position - scene.position('robot')) * [1.0, 1.0, 0.0]
    outward /= np.linalg.norm(outward)
    angle = np.clip(LEAN_PER_METRE * _out_of_reach(scene, position), -MAX_LEAN, MAX_LEAN)
    lean = Rotation.from_rotvec(angle * np.cross(outward, [0.0, 0.0, 1.0]))
    return lean.as_matrix() @ yawed(yaw)


def _nearness(way: np.ndarray, rotation: np.ndarray, hand_axes: np.ndarray) -> float:
    """What a grasp is worth because the hand is almost there; nothing from afar."""
    near = max(0.0, 1.0 - float(np.linalg.norm(way)) / _BESIDE_HAND)
    alike = rotation.T @ hand_axes
    cosine = (abs(alike[0, 0] + alike[1, 1]) + alike[2, 2] - 1.0) / 2.0  # or half a turn about z
    turned = float(np.arccos(np.clip(cosine, -1.0, 1.0)))
    return near * (_NEARNESS[0] + _NEARNESS[1] * max(0.0, 1.0 - turned / _TURNED_HAND))


def rim_point(scene: Scene, name: str, radial: np.ndarray, depth: float = _RIM_DEPTH
              ) -> np.ndarray:
    """Where to pinch an object's rim on the side to which `radial` points, (3,) [m].

    :param depth: of the grip site below the edge [m].
    """
    rim, axes = RIMS[category(name)], scene.axes(name)
    outward = axes.T @ radial * [1.0, 1.0, 0.0]
    local = rim.radius * outward / np.linalg.norm(outward) + [*rim.centre, rim.height - depth]
    return scene.position(name) + axes @ local


def plan_rim_grasp(robot: Robot, name: str) -> Grasp:
    """Return the best grasp of a rim: the finger axis points to the rim's centre.

    The hand may lean outwards, away from what stands on the other side. A hand that is already
    beside the rim takes it there: a learner that came to another point than was planned first
    should not be sent around.
    """
    scene, hand, hand_axes = robot.scene, robot.position, robot.axes
    obstacles, own = scene.points(without=[name]), scene.points(only=name)
    clear = _RIM_DEPTH + FINGER_DEPTH + _ABOVE
    candidates = []
    for angle in np.arange(_ANGLES) * 2 * np.pi / _ANGLES:
        radial = np.array([np.cos(angle), np.sin(angle), 0.0])
        position = rim_point(scene, name, radial)
        yaw = angle % np.pi - np.pi / 2
        for lean in (0.0, _RIM_LEAN):
            outward = Rotation.from_rotvec(-lean * np.cross(radial, [0.0, 0.0, 1.0])).as_matrix()
            rotation = outward @ leaning(scene, position, yaw)
            cost = (_turning_cost(yaw) + 6.0 * abs(_out_of_reach(scene, position)) + 0.3 * lean
                    - _nearness(position - hand, rotation, hand_axes))
            grasp = Grasp(position, rotation, cost, clear=clear, air=_AIR[1])
            candidates.append((grasp, radial))
    least = np.inf
    # Obstacles take the time, and only add to a cost: whatever costs more without them is out.
    for grasp, radial in sorted(candidates, key=lambda candidate: candidate[0].cost):
        if grasp.cost >= least:
            break
        outside = own[(own - grasp.position) @ radial > 0.015]  # a handle is in the way too
        cost = grasp.cost + sum(_obstruction(points, grasp.position, grasp.rotation)
                                for points in (obstacles, outside))
        if cost < least:
            best, towards, least = replace(grasp, cost=cost), radial, cost
    return _beside_wall(best, towards, obstacles)


def plan_middle_grasp(scene: Scene, name: str) -> Grasp:
    """Return the best grasp across an object, as deep as palm and table allow."""
    own, obstacles = scene.points(only=name), scene.points(without=[name])
    bottom, top = own[:, 2].min(), own[:, 2].max()
    height = max(top - PALM_DEPTH, bottom + FINGER_DEPTH + 0.001, (top + bottom) / 2 - 0.004
                 if top - bottom < PALM_DEPTH else -np.inf)
    held = own[np.abs(own[:, 2] - height) < 0.02]
    centre = (own[:, :2].max(axis=0) + own[:, :2].min(axis=0)) / 2
    candidates = []
    for yaw in (np.arange(_ANGLES) - _ANGLES // 2) * np.pi / _ANGLES:
        rotation = leaning(scene, np.append(centre, height), yaw)
        across = (held[:, :2] - centre) @ rotation[:2, 0]
        along = (held[:, :2] - centre) @ rotation[:2, 1]
        # Where most of the object is, so that a pot is held by its body, not beside its handle.
        middle = np.array([(across.max() + across.min()) / 2, along.mean()])
        position = np.append(centre + rotation[:2, :2] @ middle, height)
        cost = (_obstruction(obstacles, position, rotation) + _turning_cost(yaw)
                + 5 * np.ptp(across) + 100 * (np.ptp(across) > MAX_WIDTH))
        air = float(np.clip((_OPEN - np.ptp(across)) / 2 - 0.004, *_AIR))
        candidates.append(Grasp(position, rotation, cost, air=air,
                                clear=float(top - height) + FINGER_DEPTH + _ABOVE))
    return min(candidates, key=lambda grasp: grasp.cost)


def plan_grasp(robot: Robot, name: str) -> Grasp:
    """Return the best downward grasp of an object as it lies now, for a hand where it is now."""
    if category(name) in RIMS:
        return plan_rim_grasp(robot, name)
    return plan_middle_grasp(robot.scene, name)


def aligned(fingers: np.ndarray, approach: np.ndarray) -> np.ndarray:
    """Gripper axes that close along `fingers` and point along `approach`, (3, 3)."""
    approach = approach / np.linalg.norm(approach)
    fingers = fingers - approach * (fingers @ approach)
    fingers = fingers / np.linalg.norm(fingers)
    return np.stack([fingers, np.cross(approach, fingers), approach], axis=1)


def way_out(scene: Scene, name: str) -> np.ndarray:
    """Shortest sideways move after which nothing is above or beside an object, (3,) [m].

    Zero if nothing is above it now; an open drawer or the cabinet over it may be. z is how far to
    lift before: nothing where only an edge is under something, perhaps by millimetres.
    """
    own, obstacles = scene.points(only=name), scene.points(without=[name])
    low, high = own.min(axis=0), own.max(axis=0)
    centre, radius = (low + high)[:2] / 2, float((high - low)[:2].max()) / 2
    off = centre - obstacles[obstacles[:, 2] > high[2], :2]
    distances = np.linalg.norm(off, axis=1)
    overhang = radius - float(distances.min(initial=np.inf))
    if overhang < -_NO_OVERHANG:
        return np.zeros(3)
    if overhang < _SMALL_OVERHANG:
        nearest = off[distances.argmin()]
        beside = obstacles[(obstacles[:, 2] > low[2]) & (obstacles[:, 2] < high[2]), :2]
        if (np.linalg.norm(centre - nearest - beside, axis=1) < _SAME_COLUMN).any():
            return np.zeros(3)  # it stands beside the object
        return np.append((overhang + _OVERHANG_MARGIN) * nearest / distances.min(), 0.0)
    standing = obstacles[obstacles[:, 2] > low[2] + 0.02]
    angles = np.arange(_ANGLES) * 2 * np.pi / _ANGLES
    for distance in np.arange(0.01, 0.17, 0.01):
        for move in distance * np.stack([np.cos(angles), np.sin(angles)], axis=1):
            if (np.linalg.norm(standing[:, :2] - centre - move, axis=1)
                    > radius + _SIDE_MARGIN).all():
                return np.append(move, _DRAG_HEIGHT)
    return np.zeros(3)
