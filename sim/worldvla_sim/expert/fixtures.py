# SPDX-License-Identifier: Apache-2.0
"""Skills for what cannot be picked up: drawers, knobs, plates to push, racks to lay things on.

Positions on fixtures are in the fixture's own frame, measured from LIBERO's collision shapes.
"""

import numpy as np
from scipy.spatial.transform import Rotation

from worldvla_sim.expert.grasps import Grasp, aligned, plan_grasp
from worldvla_sim.expert.robot import CLOSED, OPEN, Robot
from worldvla_sim.expert.skills import (
    Motion,
    approach,
    grip,
    reach,
    release,
    rise,
    stay,
    take,
    travel,
)

HANDLE_DEPTH = -0.100  # [m] y of a drawer's handle in the cabinet's frame, drawer closed
HANDLE_HEIGHTS = {'top': 0.184, 'middle': 0.114, 'bottom': 0.044}  # [m] z, likewise
KNOB_HEIGHT = 0.034  # [m] z of the middle of the stove's knob in the stove's frame
KNOB_ON = 0.5  # [rad] of the hinge, from which LIBERO calls a stove on
_UP = np.array([0.0, 0.0, 1.0])


def handle_grasp(robot: Robot, cabinet: str, level: str) -> Grasp:
    """Return the grasp of a drawer's handle from the front, one finger above and one below."""
    slide = robot.scene.joint(f'{cabinet}_{level}_level')
    position = robot.scene.in_fixture(
        cabinet, [0.0, HANDLE_DEPTH + slide, HANDLE_HEIGHTS[level]])
    return Grasp(position, aligned(_UP, robot.scene.axes(cabinet)[:, 1]))


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


def turn_knob(robot: Robot, stove: str, *, angle: float = 0.9, attempts: int = 3) -> Motion:
    """Turn a stove's knob on: grasp across its bar, then turn the hand."""
    scene = robot.scene
    for _ in range(attempts):
        robot.gripper = OPEN
        bar = scene.axes(f'{stove}')[:, 1]
        turned = Rotation.from_rotvec(scene.joint(f'{stove}_button') * _UP).as_matrix()
        grasp = Grasp(scene.in_fixture(stove, [0.0, 0.0, KNOB_HEIGHT]),
                      aligned(np.cross(turned @ bar, _UP), -_UP))
        yield from approach(robot, grasp)
        yield from grip(robot, CLOSED)
        robot.rotation = Rotation.from_rotvec(angle * _UP).as_matrix() @ robot.axes
        yield from reach(robot, robot.position, tolerance=0.01, turn_tolerance=0.1, patience=40)
        yield from grip(robot, OPEN, 6)
        yield from rise(robot, 0.08)
        if scene.joint(f'{stove}_button') > KNOB_ON:
            return True
    return False


def slide(robot: Robot, name: str, target: str, *, attempts: int = 4) -> Motion:
    """Slide an object over the table to a region, held by its rim but not lifted."""
    scene = robot.scene
    for _ in range(attempts):
        robot.gripper = OPEN
        yield from approach(robot, plan_grasp(scene, name))
        yield from grip(robot, CLOSED)
        height = robot.position[2] + 0.002

        def place(height: float = height) -> np.ndarray:
            goal = scene.position(target) + robot.position - scene.position(name)
            return np.array([*goal[:2], height])
        yield from reach(robot, place, tolerance=0.006, speed=0.6, turn_tolerance=np.inf,
                         patience=80)
        yield from release(robot)
        if all(scene.holds(predicate) for predicate in scene.goal):
            return True
    return False


def lay_on_rack(robot: Robot, name: str, rack: str, region: str, *, grip_height: float = 0.06,
                attempts: int = 3) -> Motion:
    """Lay a bottle on a sloping rack, its bottom against the lower lip.

    The region's z axis points up the slope and its -y axis away from the shelf.
    """
    scene = robot.scene
    up_slope, normal = scene.axes(region)[:, 2], -scene.axes(region)[:, 1]
    uphill = up_slope * [1, 1, 0] / np.linalg.norm(up_slope[:2])
    sideways = scene.axes(rack)[:, 0]
    tilt = np.arccos(up_slope[2])
    laying = Rotation.from_rotvec(tilt * np.cross(_UP, uphill)).as_matrix()

    def plan() -> Grasp:
        position = scene.position(name) + grip_height * scene.axes(name)[:, 2]
        return Grasp(position, aligned(sideways, uphill - _UP))

    for _ in range(attempts):
        if (yield from take(robot, name, plan=plan, lift=0.10)):
            above = scene.position(region) + 0.09 * normal
            hold = robot.position - scene.position(name)
            yield from travel(robot, above + hold, held=[name])
            robot.rotation = laying @ robot.rotation

            def place(lift: float) -> np.ndarray:
                return (scene.position(region) + 0.012 * up_slope + lift * normal
                        + robot.position - scene.position(name))
            yield from reach(robot, lambda: place(0.06), tolerance=0.01, patience=60)
            yield from reach(robot, lambda: place(0.014), tolerance=0.006, speed=0.6, patience=40)
            yield from grip(robot, OPEN, 8)
            yield from rise(robot, 0.08)
            yield from stay(robot, 3)
        else:
            yield from grip(robot, OPEN, 6)
            yield from rise(robot, 0.08)
        if all(scene.holds(predicate) for predicate in scene.goal):
            return True
    return False
