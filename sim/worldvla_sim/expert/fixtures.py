# SPDX-License-Identifier: Apache-2.0
"""Skills for what is fixed to the table: drawers, the stove's knob, the microwave's door.

Reactions to the present state, as `holding` and `picking` are. Positions on fixtures are in the
fixture's own frame, measured from LIBERO's collision shapes.
"""

import numpy as np
from scipy.spatial.transform import Rotation

from worldvla_sim.expert.grasps import Grasp, aligned, leaning
from worldvla_sim.expert.holding import (
    BY_GRASP,
    EMPTY,
    HALF_FACING,
    NEAR,
    along_way,
    go,
    leave,
    over,
    split,
    take_hold,
)
from worldvla_sim.expert.robot import CLOSED, DOWNWARD, Robot
from worldvla_sim.expert.scene import UP
from worldvla_sim.expert.skills import Motion, cruising_height, react

HANDLE_DEPTH = -0.100  # [m] y of a drawer's handle in the cabinet's frame, drawer closed
HANDLE_HEIGHTS = {'top': 0.184, 'middle': 0.114, 'bottom': 0.044}  # [m] z, likewise
HANDLE_PLAY = (0.005, 0.020)  # [m] above and below a handle, and to its sides; as of `Grasp`
CLOSED_POSITION = 0.002  # [m] of the slide; LIBERO calls a drawer closed above 0
SHUT_ANGLE = -0.004  # [rad] of the hinge; LIBERO calls a microwave closed above -0.005
_PUSH_LEAN = 0.65  # [rad] from straight down, so that the hand stays clear of the handles above
_HINGE = np.array([-0.1725, -0.088, 0.150])  # [m] of the microwave's hinge, near the door's top
_DOOR_GRIP = 0.20  # [m] from the hinge where the door is pushed
KNOB_HEIGHT = 0.034  # [m] z of the middle of the stove's knob in the stove's frame
_KNOB_AIR, _KNOB_PLAY = 0.02, (0.0, 0.008)  # [m] beside its bar, and along it; as of `Grasp`
_ON_HANDLE, _ON_BAR = 0.020, 0.045  # [m] between pads that are on a handle, or on the knob's bar
_SLIPPED = 0.7  # [rad] of a hand to the bar that it has not taken along
KNOB_ON = 0.5  # [rad] of the hinge, from which LIBERO calls a stove on
_AWAY = 0.07  # [m] from what was moved, where the hand is done with it
_PULL, _TURN = 0.05, 0.5  # [m], [rad] ahead of the hand: at full speed


def _leave(robot: Robot, grasp: Grasp, direction: np.ndarray) -> np.ndarray | None:
    """Open the fingers around a grasp and go away from it; None when that is done."""
    if grasp.distance(robot.position) > _AWAY:
        return None
    return leave(robot, _PULL * direction)


def _is_around(robot: Robot, grasp: Grasp, opening: float) -> bool:
    """Whether the fingers are around what they close on: one sees that, but not what they feel."""
    return grasp.distance(robot.position) < BY_GRASP and EMPTY < robot.opening < opening


def handle_grasp(robot: Robot, cabinet: str, level: str) -> Grasp:
    """Return the grasp of a drawer's handle from the front, one finger above and one below."""
    slide = robot.scene.joint(f'{cabinet}_{level}_level')
    position = robot.scene.in_fixture(
        cabinet, [0.0, HANDLE_DEPTH + slide, HANDLE_HEIGHTS[level]])
    return Grasp(position, aligned(UP, robot.scene.axes(cabinet)[:, 1]), play=HANDLE_PLAY)


def pull_drawer(robot: Robot, cabinet: str, level: str, *, opening: float = 0.165) -> Motion:
    """Open a drawer by its handle; the slide ends at 0.16 m."""
    scene = robot.scene

    def action() -> np.ndarray | None:
        grasp, outward = handle_grasp(robot, cabinet, level), -scene.axes(cabinet)[:, 1]
        if -scene.joint(f'{cabinet}_{level}_level') > opening - 0.025:
            return _leave(robot, grasp, outward)
        if not _is_around(robot, grasp, _ON_HANDLE):
            return take_hold(robot, cabinet, grasp, firm=True)
        robot.turn_to(grasp.rotation)
        return go(robot, grasp.position + _PULL * outward, CLOSED)

    return (yield from react(action))


def knob_bar(robot: Robot, stove: str) -> np.ndarray:
    """Direction of a knob's bar, (3,): the long axis of what stands up on a stove."""
    points = robot.scene.points(only=stove) - robot.scene.position(stove)
    bar = points[points[:, 2] > KNOB_HEIGHT - 0.006, :2]
    _, axes = np.linalg.eigh(np.cov(bar.T))
    return np.append(axes[:, -1], 0.0)


def turn_knob(robot: Robot, stove: str) -> Motion:
    """Turn a stove's knob on: grasp across its bar, then turn the hand."""
    def action() -> np.ndarray | None:
        knob = robot.scene.in_fixture(stove, [0.0, 0.0, KNOB_HEIGHT])
        grasp = Grasp(knob, aligned(np.cross(knob_bar(robot, stove), UP),
                                    leaning(robot.scene, knob, 0.0)[:, 2]),
                      play=_KNOB_PLAY, air=_KNOB_AIR)
        if robot.scene.joint(f'{stove}_button') > KNOB_ON:
            return _leave(robot, grasp, UP)
        if not _is_around(robot, grasp, _ON_BAR):
            return take_hold(robot, stove, grasp, firm=True)
        robot.turn_to(grasp.rotation)
        if robot.turn_error() > _SLIPPED:
            return leave(robot, np.zeros(3))
        robot.rotation = Rotation.from_rotvec(_TURN * UP).as_matrix() @ robot.axes
        return go(robot, grasp.position, CLOSED)

    return (yield from react(action))


def push_drawer(robot: Robot, cabinet: str, level: str) -> Motion:
    """Close a drawer: closed fingers, leaning towards the cabinet, push its handle."""
    scene, slide = robot.scene, f'{cabinet}_{level}_level'
    sideways, inward, _ = scene.axes(cabinet).T
    leaning = aligned(sideways, np.sin(_PUSH_LEAN) * inward - np.cos(_PUSH_LEAN) * UP)

    def beside_handle(distance: float) -> np.ndarray:
        return scene.in_fixture(cabinet, [
            0.0, HANDLE_DEPTH + scene.joint(slide) + distance, HANDLE_HEIGHTS[level]])

    def action() -> np.ndarray | None:
        robot.turn_to(leaning)
        shut = scene.joint(slide) > CLOSED_POSITION
        return _push(robot, (beside_handle(-0.08), beside_handle(0.0)), beside_handle(0.03), shut)

    return (yield from react(action))


def close_door(robot: Robot, microwave: str) -> Motion:
    """Swing a microwave's door shut from outside with closed fingers, the hand upright."""
    scene, hinge = robot.scene, f'{microwave}_microjoint'

    def on_door(ahead: float, outside: float) -> np.ndarray:
        angle = min(0.0, scene.joint(hinge) + ahead)
        turn = Rotation.from_rotvec(angle * UP).as_matrix()
        return scene.in_fixture(microwave, _HINGE + turn @ [_DOOR_GRIP, -outside, 0.0])

    def action() -> np.ndarray | None:
        robot.turn_to(DOWNWARD)
        shut = scene.joint(hinge) > SHUT_ANGLE
        return _push(robot, (on_door(0.0, 0.10), on_door(0.0, 0.0)), on_door(0.25, 0.0), shut)

    return (yield from react(action))


def _push(robot: Robot, way: tuple[np.ndarray, np.ndarray], target: np.ndarray, is_done: bool
          ) -> np.ndarray | None:
    """Come to where pushing begins, then push with closed fingers; None when done and away.

    :param way: where pushing begins, and the place that is pushed, (3,) each [m].
    :param target: where to push it [m].
    """
    start, end = way
    position, direction = robot.position, (end - start) / np.linalg.norm(end - start)
    beside, along = split(position - start, direction)
    if is_done:
        if np.linalg.norm(position - end) > _AWAY:
            return None
        robot.rotation = robot.axes
        return go(robot, position - _PULL * direction, CLOSED)
    turned = robot.turn_error() < HALF_FACING
    if turned and beside < 2 * NEAR and -NEAR < along < float(np.linalg.norm(end - start)) + NEAR:
        on_way = start + along * direction
        return go(robot, along_way(on_way, target, direction, beside / NEAR), CLOSED, 0.8)
    sideways = float(np.linalg.norm((start - position)[:2]))
    if sideways < NEAR:
        return go(robot, start, CLOSED)
    return go(robot, over(robot, start, cruising_height(robot, start)), CLOSED)
