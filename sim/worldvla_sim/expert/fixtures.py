# SPDX-License-Identifier: Apache-2.0
"""Skills for what is fixed to the table: drawers, the stove's knob, the microwave's door.

Positions on fixtures are in the fixture's own frame, measured from LIBERO's collision shapes.
"""

import numpy as np
from scipy.spatial.transform import Rotation

from worldvla_sim.expert.grasps import Grasp, aligned
from worldvla_sim.expert.robot import CLOSED, DOWNWARD, OPEN, Robot
from worldvla_sim.expert.scene import UP
from worldvla_sim.expert.skills import (
    Motion,
    approach,
    grip,
    reach,
    rise,
    travel,
)

HANDLE_DEPTH = -0.100  # [m] y of a drawer's handle in the cabinet's frame, drawer closed
HANDLE_HEIGHTS = {'top': 0.184, 'middle': 0.114, 'bottom': 0.044}  # [m] z, likewise
CLOSED_POSITION = 0.002  # [m] of the slide; LIBERO calls a drawer closed above 0
SHUT_ANGLE = -0.004  # [rad] of the hinge; LIBERO calls a microwave closed above -0.005
_PUSH_LEAN = 0.65  # [rad] from straight down, so that the hand stays clear of the handles above
_HINGE = np.array([-0.1725, -0.088, 0.150])  # [m] of the microwave's hinge, near the door's top
_DOOR_GRIP = 0.20  # [m] from the hinge where the door is pushed
KNOB_HEIGHT = 0.034  # [m] z of the middle of the stove's knob in the stove's frame
KNOB_ON = 0.5  # [rad] of the hinge, from which LIBERO calls a stove on


def handle_grasp(robot: Robot, cabinet: str, level: str) -> Grasp:
    """Return the grasp of a drawer's handle from the front, one finger above and one below."""
    slide = robot.scene.joint(f'{cabinet}_{level}_level')
    position = robot.scene.in_fixture(
        cabinet, [0.0, HANDLE_DEPTH + slide, HANDLE_HEIGHTS[level]])
    return Grasp(position, aligned(UP, robot.scene.axes(cabinet)[:, 1]))


def pull_drawer(robot: Robot, cabinet: str, level: str, *, opening: float = 0.165,
                attempts: int = 3) -> Motion:
    """Open a drawer by its handle; the slide ends at 0.16 m."""
    scene, slide = robot.scene, f'{cabinet}_{level}_level'
    for _ in range(attempts):
        robot.gripper = OPEN
        yield from approach(robot, handle_grasp(robot, cabinet, level))
        yield from grip(robot, CLOSED)
        outward = -scene.axes(cabinet)[:, 1]
        end = robot.position + outward * (scene.joint(slide) + opening)
        yield from reach(robot, end, tolerance=0.012, turn_tolerance=np.inf, patience=60)
        yield from grip(robot, OPEN, 6)
        yield from reach(robot, robot.position + 0.06 * outward, tolerance=0.02,
                         turn_tolerance=np.inf, patience=20)
        if -scene.joint(slide) > opening - 0.025:
            return True
    return False


def knob_bar(robot: Robot, stove: str) -> np.ndarray:
    """Direction of a knob's bar, (3,): the long axis of what stands up on a stove."""
    points = robot.scene.points(only=stove) - robot.scene.position(stove)
    bar = points[points[:, 2] > KNOB_HEIGHT - 0.006, :2]
    _, axes = np.linalg.eigh(np.cov(bar.T))
    return np.append(axes[:, -1], 0.0)


def turn_knob(robot: Robot, stove: str, *, angle: float = 0.9, attempts: int = 3) -> Motion:
    """Turn a stove's knob on: grasp across its bar, then turn the hand."""
    scene = robot.scene
    for _ in range(attempts):
        robot.gripper = OPEN
        grasp = Grasp(scene.in_fixture(stove, [0.0, 0.0, KNOB_HEIGHT]),
                      aligned(np.cross(knob_bar(robot, stove), UP), -UP))
        yield from approach(robot, grasp)
        yield from grip(robot, CLOSED)
        robot.rotation = Rotation.from_rotvec(angle * UP).as_matrix() @ robot.axes
        yield from reach(robot, robot.position, tolerance=0.01, turn_tolerance=0.1, patience=40)
        yield from grip(robot, OPEN, 6)
        yield from rise(robot, 0.08)
        if scene.joint(f'{stove}_button') > KNOB_ON:
            return True
    return False


def push_drawer(robot: Robot, cabinet: str, level: str, *, attempts: int = 4) -> Motion:
    """Close a drawer: closed fingers, leaning towards the cabinet, push its handle."""
    scene, slide = robot.scene, f'{cabinet}_{level}_level'
    sideways, inward, _ = scene.axes(cabinet).T
    leaning = aligned(sideways, np.sin(_PUSH_LEAN) * inward - np.cos(_PUSH_LEAN) * UP)

    def beside_handle(distance: float) -> np.ndarray:
        return scene.in_fixture(cabinet, [
            0.0, HANDLE_DEPTH + scene.joint(slide) + distance, HANDLE_HEIGHTS[level]])

    for _ in range(attempts):
        robot.gripper = CLOSED
        robot.turn_to(leaning)
        yield from travel(robot, beside_handle(-0.10) + 0.12 * UP)
        yield from reach(robot, beside_handle(-0.06), tolerance=0.015, patience=40)
        for _ in range(60):
            if scene.joint(slide) > CLOSED_POSITION:
                break
            yield robot.towards(beside_handle(0.03), 0.8)
        yield from reach(robot, robot.position - 0.08 * inward, tolerance=0.02,
                         turn_tolerance=np.inf, patience=20)
        if scene.joint(slide) > CLOSED_POSITION:
            return True
    return False


def close_door(robot: Robot, microwave: str, *, attempts: int = 3) -> Motion:
    """Swing a microwave's door shut from outside with closed fingers, the hand upright."""
    scene, hinge = robot.scene, f'{microwave}_microjoint'

    def on_door(ahead: float, outside: float) -> np.ndarray:
        angle = min(0.0, scene.joint(hinge) + ahead)
        turn = Rotation.from_rotvec(angle * UP).as_matrix()
        return scene.in_fixture(microwave, _HINGE + turn @ [_DOOR_GRIP, -outside, 0.0])

    for _ in range(attempts):
        robot.gripper = CLOSED
        robot.turn_to(DOWNWARD)
        start = on_door(0.0, 0.10)
        yield from travel(robot, start + 0.10 * UP)
        yield from reach(robot, start, tolerance=0.02, patience=40)
        for _ in range(120):
            if scene.joint(hinge) > SHUT_ANGLE:
                break
            yield robot.towards(on_door(0.25, 0.0), 0.8)
        yield from reach(robot, robot.position + 0.10 * UP, tolerance=0.02, patience=20)
        if scene.joint(hinge) > SHUT_ANGLE:
            return True
    return False
