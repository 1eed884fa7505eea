# SPDX-License-Identifier: Apache-2.0
"""Skills that set things down in unusual ways: sliding, laying on a slope, going under a roof."""

import numpy as np
from scipy.spatial.transform import Rotation

from worldvla_sim.expert.grasps import Grasp, aligned, plan_grasp, rim_point
from worldvla_sim.expert.robot import CLOSED, OPEN, Robot
from worldvla_sim.expert.scene import UP
from worldvla_sim.expert.skills import (
    Motion,
    approach,
    destination,
    grip,
    reach,
    release,
    stay,
    take,
    travel,
)

_BOTTLE_GRIP = 0.06  # [m] above a bottle's bottom
_LEAN_TO_TAKE, _LEAN_TO_ENTER = 0.4, 0.85  # [rad] of the hand from straight down
_MICROWAVE_FLOOR = 0.016  # [m] z of the cavity's floor in the microwave's frame


def slide(robot: Robot, name: str, target: str, *, attempts: int = 4) -> Motion:
    """Slide an object over the table to a region, held by its rim but not lifted."""
    scene = robot.scene
    for _ in range(attempts):
        robot.gripper = OPEN
        yield from approach(robot, plan_grasp(scene, name))
        yield from grip(robot, CLOSED)
        height = robot.position[2] + 0.002
        for _ in range(80):
            goal = scene.position(target) + robot.position - scene.position(name)
            goal[2] = height
            arrived = np.linalg.norm(goal - robot.position) < 0.006
            if arrived or not scene.touching(name, 'gripper'):
                break
            yield robot.towards(goal, 0.6)
        yield from release(robot)
        if all(scene.holds(predicate) for predicate in scene.goal):
            return True
    return False


def lay_on_rack(robot: Robot, name: str, rack: str, region: str, *, attempts: int = 3) -> Motion:
    """Lay a bottle on a sloping rack, its bottom against the lower lip.

    The region's z axis points up the slope and its -y axis away from the shelf.
    """
    scene = robot.scene
    up_slope, normal = scene.axes(region)[:, 2], -scene.axes(region)[:, 1]
    uphill = up_slope * [1, 1, 0] / np.linalg.norm(up_slope[:2])
    laying = Rotation.from_rotvec(np.arccos(up_slope[2]) * np.cross(UP, uphill)).as_matrix()

    def place(lift: float) -> np.ndarray:
        lip = scene.position(region) + 0.012 * up_slope
        return destination(robot, name, lip + lift * normal)

    for _ in range(attempts):
        body = scene.position(name) + _BOTTLE_GRIP * scene.axes(name)[:, 2]
        grasp = Grasp(body, aligned(scene.axes(rack)[:, 0], uphill - UP))
        if (yield from take(robot, name, grasp=grasp, lift=0.10)):
            yield from travel(robot, place(0.09), held=[name])
            robot.rotation = laying @ robot.rotation
            yield from reach(robot, lambda: place(0.06), tolerance=0.01, patience=60)
            yield from reach(robot, lambda: place(0.014), tolerance=0.006, speed=0.6, patience=40)
        yield from release(robot)
        yield from stay(robot, 3)  # it slides down to the lip
        if all(scene.holds(predicate) for predicate in scene.goal):
            return True
    return False


def put_in_microwave(robot: Robot, name: str, microwave: str, region: str, *,
                     attempts: int = 3) -> Motion:
    """Set a mug down inside a microwave, bottom first.

    An upright hand would hit the roof before the mug is inside, and a hand that leans far cannot
    get at the rim. So the hand leans a little when it takes the mug and more, with the mug, when
    it goes in; let go, the mug rights itself.
    """
    scene = robot.scene
    sideways, inward, _ = scene.axes(microwave).T
    floor = scene.position(region) * [1, 1, 0] + [
        0, 0, scene.position(microwave)[2] + _MICROWAVE_FLOOR]

    def leaning_in(angle: float) -> np.ndarray:
        return aligned(sideways, np.sin(angle) * inward - np.cos(angle) * UP)

    def place(depth: float, lift: float) -> np.ndarray:
        return destination(robot, name, floor + depth * inward - 0.03 * sideways + lift * UP)

    for _ in range(attempts):
        grasp = Grasp(rim_point(scene, name, sideways, depth=0.010), leaning_in(_LEAN_TO_TAKE))
        if (yield from take(robot, name, grasp=grasp)):
            robot.turn_to(leaning_in(_LEAN_TO_ENTER))
            yield from travel(robot, place(-0.22, 0.05), held=[name])
            yield from reach(robot, lambda: place(-0.22, 0.037), patience=40)
            yield from reach(robot, lambda: place(-0.034, 0.035), tolerance=0.008, speed=0.6,
                             turn_tolerance=np.inf, patience=60)
            yield from grip(robot, OPEN, 8)
            yield from reach(robot, robot.position - 0.2 * inward + 0.03 * UP, tolerance=0.03,
                             turn_tolerance=np.inf, patience=30)
        else:
            yield from release(robot)
        if all(scene.holds(predicate) for predicate in scene.goal if predicate[1] == name):
            return True
    return False
