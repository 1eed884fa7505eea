# SPDX-License-Identifier: Apache-2.0
"""Perturb what is executed, so that demonstrations contain recoveries from small mistakes.

The label stays the expert's clean action for the state that the noise led to (as in DART, Laskey
et al. 2017); a policy trained on clean trajectories alone never sees how to come back.
"""

import numpy as np

from worldvla_ros.datatypes import ACTION_DIM

_CORRELATION = 0.8  # from step to step; white noise would average out within the controller
# Share of the noise that each axis gets: a turned hand spoils a grasp sooner than a shifted one.
_AXIS_SHARE = np.array([1.0, 1.0, 1.0, 0.2, 0.2, 0.2, 0.0])


class ActionNoise:
    """A correlated Gaussian disturbance of the motion, never of the gripper.

    :param scale: standard deviation of the translation in controller input; 0 switches it off.
    :param seed: of this episode's noise.
    """

    def __init__(self, scale: float, seed: int) -> None:
        self._scale = scale
        self._random = np.random.default_rng(seed)
        self._value = np.zeros(ACTION_DIM)

    def perturb(self, action: np.ndarray) -> np.ndarray:
        """Return the action to execute instead of the clean one, (7,) in [-1, 1]."""
        fresh = self._random.normal(size=ACTION_DIM) * self._scale * _AXIS_SHARE
        self._value = _CORRELATION * self._value + np.sqrt(1 - _CORRELATION ** 2) * fresh
        return np.clip(action + self._value, -1.0, 1.0)
