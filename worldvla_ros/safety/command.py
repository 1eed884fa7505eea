# SPDX-License-Identifier: Apache-2.0
"""One motion command in SI units, and its two-way conversion to controller input."""

from dataclasses import dataclass

import numpy as np

from worldvla_ros.config import bounded, check
from worldvla_ros.datatypes import ACTION_DIM
from worldvla_ros.errors import InferenceError


@dataclass(frozen=True)
class ActionScale:
    """Goal offset of one control step at controller input 1.0; defaults: robosuite OSC_POSE."""

    translation: float = bounded(
        0.05, unit='m', minimum=1e-6, maximum=1.0, read_only=True,
        doc='Translation per control step and axis at controller input 1.0')
    rotation: float = bounded(
        0.5, unit='rad', minimum=1e-6, maximum=3.15, read_only=True,
        doc='Rotation per control step and axis at controller input 1.0')

    def __post_init__(self) -> None:
        """Refuse values outside the ranges."""
        check(self)


@dataclass(frozen=True, eq=False)
class Command:
    """
    Motion for one control step in the base frame; it may be anything, limits come later.

    It is a goal offset for an operational-space controller, see DeltaAction.msg.
    """

    translation: np.ndarray  # (3,) float64 [m] x y z
    rotation_vector: np.ndarray  # (3,) float64 [rad] axis times angle, about the base axes
    gripper: float  # -1 open, 1 close, 0 leave as it is

    def __post_init__(self) -> None:
        """Copy into read-only float64 vectors; refuse another shape."""
        for name in ('translation', 'rotation_vector'):
            vector = np.array(getattr(self, name), dtype=np.float64)
            if vector.shape != (3,):
                raise InferenceError(f'{name} of a command must be (3,), got {vector.shape}')
            vector.setflags(write=False)
            object.__setattr__(self, name, vector)
        object.__setattr__(self, 'gripper', float(self.gripper))

    @classmethod
    def hold(cls, gripper: float) -> 'Command':
        """Make the explicit zero motion that keeps the gripper."""
        return cls(np.zeros(3), np.zeros(3), gripper)

    @classmethod
    def from_controller_input(cls, action: np.ndarray, scale: ActionScale) -> 'Command':
        """
        Convert controller input to SI; the inverse of `to_controller_input`.

        :param action: (7,) nominally in [-1, 1]: dx dy dz, rotation vector (3), gripper. Values
            outside pass unchanged, because the safety limits cut them and say so
        """
        action = np.asarray(action, dtype=np.float64)
        if action.shape != (ACTION_DIM,):
            raise InferenceError(f'an action must be ({ACTION_DIM},), got {action.shape}')
        return cls(action[:3] * scale.translation, action[3:6] * scale.rotation, action[6])

    def to_controller_input(self, scale: ActionScale) -> np.ndarray:
        """Convert SI to controller input (7,) float64; the inverse of `from_controller_input`."""
        return np.concatenate([self.translation / scale.translation,
                               self.rotation_vector / scale.rotation, [self.gripper]])

    @property
    def is_finite(self) -> bool:
        """Whether no value is NaN or infinite."""
        return bool(np.isfinite(self.translation).all() and np.isfinite(self.rotation_vector).all()
                    and np.isfinite(self.gripper))

    @property
    def is_zero_motion(self) -> bool:
        """Whether it moves nothing but, perhaps, the gripper."""
        return not (self.translation.any() or self.rotation_vector.any())
