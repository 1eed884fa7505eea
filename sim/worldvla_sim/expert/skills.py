# SPDX-License-Identifier: Apache-2.0
"""What the expert can do, as generators that yield one action per control step.

A skill reads the scene anew at every step, so it reacts to what really happened. Its return value
says whether it worked; recipes compose skills with `yield from`.
"""

from collections.abc import Callable, Generator, Sequence
import itertools

import numpy as np

from worldvla_sim.expert.grasps import Grasp, plan_grasp, way_out
from worldvla_sim.expert.robot import CLOSED, OPEN, Robot
from worldvla_sim.expert.scene import UP

Motion = Generator[np.ndarray, None, bool]
Target = np.ndarray | Callable[[], np.ndarray]

HOVER = 0.09  # [m] above a grasp from which the gripper comes straight down
CLEARANCE = 0.03  # [m] between what is carried and what it passes over
CLOSING_STEPS = 9  # robosuite's Panda closes in 8 steps from fully open
# Half widths [m] of what moves along a path: the fingers with what they hold, and the hand, whose
# underside is 2.6 cm above the grip site.
_HELD_HALF_WIDTH, _HAND_HALF_WIDTH, _HAND_HEIGHT = 0.07, 0.11, 0.026


def reach(robot: Robot, target: Target, *, tolerance: float = 0.01, turn_tolerance: float = 0.12,
          speed: float = 1.0, patience: int = 60) -> Motion:
    """Move to a point that may itself move; False when `patience` steps did not do."""
    for _ in range(patience):
        goal = target() if callable(target) else target
        if (np.linalg.norm(goal - robot.position) < tolerance
                and robot.turn_error() < turn_tolerance):
            return True
        yield robot.towards(goal, speed)
    return False


def stay(robot: Robot, steps: int | None = None) -> Motion:
    """Keep the present place for some steps; None: for ever."""
    place = robot.position
    for _ in itertools.count() if steps is None else range(steps):
        yield robot.towards(place)
    return True


def grip(robot: Robot, command: float, steps: int = CLOSING_STEPS) -> Motion:
    """Open or close the fingers and wait until they have moved."""
    robot.gripper = command
    return (yield from stay(robot, steps))


def cruising_height(robot: Robot, target: np.ndarray, *, held: Sequence[str] = (),
                    lowest: float = -np.inf) -> float:
    """Height [m] from which the gripper may go straight to above a point, at least its own."""
    scene, start = robot.scene, robot.position
    bottoms = [scene.points(only=name)[:, 2].min() for name in held]
    hanging = start[2] - min([start[2] - 0.0125, *bottoms])
    return float(max(
        scene.highest(start, target, _HELD_HALF_WIDTH, without=held) + hanging + CLEARANCE,
        scene.highest(start, target, _HAND_HALF_WIDTH, without=held) - _HAND_HEIGHT + CLEARANCE,
        target[2], lowest))


def travel(robot: Robot, target: np.ndarray, *, held: Sequence[str] = (),
           tolerance: float = 0.02) -> Motion:
    """Go above everything in between to a point; end at the target's height or higher."""
    start, height = robot.position, cruising_height(robot, target, held=held)
    if start[2] < height - 0.01:
        yield from reach(robot, np.array([*start[:2], height]), tolerance=0.02,
                         turn_tolerance=np.inf)
    above = np.array([*target[:2], height])
    return (yield from reach(robot, above, tolerance=tolerance, patience=90))


def rise(robot: Robot, height: float) -> Motion:
    """Go straight up by `height` [m]."""
    return (yield from reach(robot, robot.position + height * UP, tolerance=0.015,
                             turn_tolerance=np.inf))


def approach(robot: Robot, grasp: Grasp) -> Motion:
    """Bring the gripper around something to hold, the last bit straight along its approach."""
    robot.turn_to(grasp.rotation)
    if robot.axes[:, 2] @ grasp.rotation[:, 2] < np.cos(0.3):
        # Tilting sweeps the fingers sideways: do it here, not beside what is to be taken.
        yield from reach(robot, robot.position, tolerance=0.03, turn_tolerance=0.15, patience=30)
    yield from travel(robot, grasp.before(HOVER))
    yield from reach(robot, grasp.before(HOVER), tolerance=0.006, patience=25)
    return (yield from reach(robot, grasp.before(0.0), tolerance=0.004, speed=0.8, patience=30))


def take(robot: Robot, name: str, *, grasp: Grasp | None = None, lift: float = 0.06) -> Motion:
    """Grasp an object and lift it; False when it did not come along.

    :param grasp: how to hold it; None plans a grasp from above.
    """
    scene = robot.scene
    robot.gripper = OPEN
    yield from approach(robot, grasp or plan_grasp(scene, name))
    yield from grip(robot, CLOSED)
    before = scene.position(name)[2]
    if (out := way_out(scene, name)).any():
        yield from rise(robot, out[2])
        yield from reach(robot, robot.position + out * [1, 1, 0], turn_tolerance=np.inf,
                         patience=40)
    yield from rise(robot, lift)
    return scene.position(name)[2] - before > 0.01 and scene.touching(name, 'gripper')


def destination(robot: Robot, name: str, goal: np.ndarray) -> np.ndarray:
    """Where the gripper must go for a held object's origin to reach `goal`, (3,) [m]."""
    return goal + robot.position - robot.scene.position(name)


def release(robot: Robot) -> Motion:
    """Open the fingers and leave upwards."""
    yield from grip(robot, OPEN, 8)
    return (yield from rise(robot, 0.07))
