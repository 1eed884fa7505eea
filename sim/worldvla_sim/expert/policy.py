# SPDX-License-Identifier: Apache-2.0
"""The expert as a policy: it reads the true state of the environment, not the observation."""

import numpy as np

from worldvla_sim.expert.recipes import recipe_for
from worldvla_sim.expert.robot import Robot
from worldvla_sim.expert.scene import Scene
from worldvla_sim.expert.skills import Motion, stay
from worldvla_sim.libero_env import LiberoEnv
from worldvla_sim.observation import SimObservation


class ExpertPolicy:
    """Plays the recipe of the environment's task from its privileged state.

    It reacts to the state that it finds at each `act()`, so it also works when another program
    executes its actions later or with noise; it needs only one `act()` per control step.
    """

    needs_images = False
    needs_wrist = False
    image_size: int | None = None

    def __init__(self) -> None:
        self._robot: Robot | None = None
        self._motion: Motion | None = None
        self.aim = np.zeros(3)
        """What the last action was for, world frame [m]: the place of a grasp, or where what is
        held shall come."""

    def start(self, env: LiberoEnv, observation: SimObservation) -> None:
        """Begin an episode that `env.reset` has just started."""
        self._robot = Robot(Scene(env))
        self._motion = recipe_for(env.suite, env.task)(self._robot)

    def act(self, observation: SimObservation) -> np.ndarray:
        """Return the next action, (7,) controller input; stays in place after the recipe's end."""
        assert self._robot is not None and self._motion is not None, 'start comes first'
        try:
            action = next(self._motion)
        except StopIteration:
            self._motion = stay(self._robot)
            action = next(self._motion)
        aim = self._robot.aim()
        assert aim is not None, 'every action is a motion towards a place'
        self.aim = aim
        return action
