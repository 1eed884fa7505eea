# SPDX-License-Identifier: Apache-2.0
"""What skills share: to react, to stay, and how high to go.

A skill is a generator that yields one action per control step and reads the scene anew each time.
Recipes compose skills with `yield from`; a skill's return value says whether it worked.
"""

from collections.abc import Callable, Generator, Sequence

import numpy as np

from worldvla_sim.expert.robot import Robot

Motion = Generator[np.ndarray, None, bool]

PATIENCE = 450  # [steps] after which what cannot be reached is given up
HOVER = 0.09  # [m] above a grasp from which the gripper comes straight down
CLEARANCE = 0.03  # [m] between what is carried and what it passes over
# Half widths [m] of what moves along a path: the fingers with what they hold, and the hand, whose
# underside is 2.6 cm above the grip site.
_HELD_HALF_WIDTH, _HAND_HALF_WIDTH, _HAND_HEIGHT = 0.07, 0.11, 0.026


def react(action: Callable[[], np.ndarray | None]) -> Motion:
    """Do at each step what `action` says; False when it does not say None in time: it is done."""
    for _ in range(PATIENCE):
        if (now := action()) is None:
            return True
        yield now
    return False


def stay(robot: Robot) -> Motion:
    """Keep the present place for ever."""
    place = robot.position
    while True:
        yield robot.towards(place)


def cruising_height(robot: Robot, target: np.ndarray, *, held: Sequence[str] = (),
                    without: Sequence[str] = (), lowest: float = -np.inf) -> float:
    """Height [m] from which the gripper may go straight to above a point, at least its own.

    :param held: what moves along below the hand.
    :param without: what else is not in the way.
    """
    scene, start = robot.scene, robot.position
    bottoms = [scene.points(only=name)[:, 2].min() for name in held]
    hanging = start[2] - min([start[2] - 0.0125, *bottoms])
    passed = [*held, *without]
    return float(max(
        scene.highest(start, target, _HELD_HALF_WIDTH, without=passed) + hanging + CLEARANCE,
        scene.highest(start, target, _HAND_HALF_WIDTH, without=passed) - _HAND_HEIGHT + CLEARANCE,
        target[2], lowest))


def destination(robot: Robot, name: str, goal: np.ndarray) -> np.ndarray:
    """Where the gripper must go for a held object's origin to reach `goal`, (3,) [m]."""
    return goal + robot.position - robot.scene.position(name)
