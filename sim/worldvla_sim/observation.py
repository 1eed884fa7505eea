# SPDX-License-Identifier: Apache-2.0
"""What the simulator tells: the robot's view, and the ground truth behind it."""

from dataclasses import dataclass

import numpy as np

from worldvla_ros.errors import SimulationError


@dataclass(frozen=True, eq=False)
class SimObservation:
    """What the robot sees and feels after a control step; all arrays are read-only copies."""

    agentview: np.ndarray | None  # (H, W, 3) uint8 RGB, rotated by 180 degrees as in training
    wrist: np.ndarray | None  # (H, W, 3) uint8 RGB, same rotation; None unless asked for
    joint_positions: np.ndarray  # (7,) float64 [rad]
    gripper_positions: np.ndarray  # (2,) float64 [m], left and right finger
    ee_position: np.ndarray  # (3,) float64 [m] grip site in the world frame
    ee_quaternion: np.ndarray  # (4,) float64 xyzw, hand body in the world frame
    time: float  # [s] simulated since the scene settled

    def __post_init__(self) -> None:
        """Freeze the arrays."""
        for value in vars(self).values():
            if isinstance(value, np.ndarray):
                value.setflags(write=False)


def rendered(image: np.ndarray | None) -> np.ndarray:
    """Return an image of an observation; SimulationError if the environment renders none."""
    if image is None:
        raise SimulationError('there is no such picture: make the environment with render=True, '
                              'and with wrist=True for the wrist camera')
    return image


@dataclass(frozen=True, eq=False)
class Privileged:
    """Ground truth that no camera shows: for experts, metrics and tests, never for policies."""

    bodies: dict[str, tuple[np.ndarray, np.ndarray]]  # name -> (3,) [m], (4,) wxyz; world frame
    sites: dict[str, tuple[np.ndarray, np.ndarray]]  # name -> (3,) [m], (3, 3) axes; world frame
    joints: dict[str, float]  # joint of a fixture -> [m] or [rad]
