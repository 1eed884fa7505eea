# SPDX-License-Identifier: Apache-2.0
"""Turn the pose that a skill wants into one action of LIBERO's controller.

The gripper frame is robosuite's grip site: x is the axis along which the fingers close, z points
out of the hand. At rest x is the world's +y and z its -z.
"""

from collections.abc import Sequence

import numpy as np
from scipy.spatial.transform import Rotation

from worldvla_sim.expert.scene import Scene

OPEN, CLOSED = -1.0, 1.0

DOWNWARD = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
"""Axes of the gripper (columns) when it points straight down as at rest."""

POSITION_SCALE = 0.05  # [m] of an action of 1.0 (OSC_POSE of robosuite)
ROTATION_SCALE = 0.5  # [rad] of an action of 1.0
# The controller moves about a third of the commanded way in one period; a gain of 3 makes up for
# it. With 1 a steady error of up to 1 cm remains, which misses LIBERO's 3 cm predicates.
GAIN = 3.0
# Inside the published normalisation ranges: 0.9375 for xyz; -0.326 to 0.375, +-0.375, +-0.375 for
# the rotation vector.
MAX_TRANSLATION = 0.93
MAX_ROTATION = 0.32
_LAST_JOINT_RANGE = 2.6  # [rad] either way; the joint ends at 2.897
# The published no-op filter drops actions with ||a[:6]|| < 1e-4; a filtered trajectory does not
# replay, so the expert waits by moving a tenth of a millimetre.
_MIN_MOTION = 2e-3


def yawed(yaw: float) -> np.ndarray:
    """Axes of a downward gripper turned by `yaw` [rad] about the world's z, (3, 3)."""
    return Rotation.from_euler('z', yaw).as_matrix() @ DOWNWARD


class Robot:
    """The gripper's pose, and the pose and opening that it is asked for."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.rotation = DOWNWARD  # wanted axes, (3, 3)
        self.gripper = OPEN  # wanted opening
        self._aim: np.ndarray | None = None  # as of the present step
        model = scene.model
        self._site = model.site('gripper0_grip_site').id
        joints = [model.joint(f'gripper0_finger_joint{i}') for i in (1, 2)]
        self._finger_qpos = [joint.qposadr[0] for joint in joints]
        self._finger_qvel = [joint.dofadr[0] for joint in joints]
        self._finger_actuators = [model.actuator(f'gripper0_gripper_finger_joint{i}').id
                                  for i in (1, 2)]

    @property
    def position(self) -> np.ndarray:
        """Where the grip site is, (3,) [m]."""
        return self.scene.data.site_xpos[self._site].copy()

    @property
    def axes(self) -> np.ndarray:
        """The gripper's axes as columns, (3, 3)."""
        return self.scene.data.site_xmat[self._site].reshape(3, 3).copy()

    @property
    def opening(self) -> float:
        """Distance between the finger pads [m]."""
        return float(self._fingers(self.scene.data.qpos, self._finger_qpos).sum())

    def finger_speeds(self) -> np.ndarray:
        """How fast each finger opens, (2,) [m/s]; negative when it closes."""
        return self._fingers(self.scene.data.qvel, self._finger_qvel)

    def finger_targets(self) -> np.ndarray:
        """Where each finger is sent, (2,) [m] from closed."""
        return self._fingers(self.scene.data.ctrl, self._finger_actuators)

    def finger_gaps(self) -> np.ndarray:
        """How far each finger is held off where it is sent when closing, (2,) [m]: its force."""
        return self._fingers(self.scene.data.qpos, self._finger_qpos) - self.finger_targets()

    def speed(self) -> float:
        """Speed of the grip site [m/s]."""
        return self.scene.site_speed(self._site)

    @staticmethod
    def _fingers(values: np.ndarray, indices: Sequence[int]) -> np.ndarray:
        """Pick both fingers' values; the right finger's axis is the other way round."""
        return values[list(indices)] * [1.0, -1.0]

    def turn_to(self, rotation: np.ndarray) -> None:
        """Ask for these axes, or for the half turn about z that closes the same way.

        Takes the nearer of the two unless that turns the last joint towards its end.
        """
        half_turn = rotation @ np.diag([-1.0, -1.0, 1.0])
        self.rotation = min((rotation, half_turn), key=self._turning_cost)

    def _turning_cost(self, rotation: np.ndarray) -> float:
        error = rotation_error(rotation, self.axes)
        last_joint = self.scene.joint('robot0_joint7') + error @ self.axes[:, 2]
        beyond = max(0.0, abs(last_joint) - _LAST_JOINT_RANGE)
        return float(np.linalg.norm(error)) + 0.1 * abs(last_joint) + 10.0 * beyond

    def turn_error(self) -> float:
        """Angle to the wanted axes [rad]."""
        return float(np.linalg.norm(rotation_error(self.rotation, self.axes)))

    def aim_at(self, place: np.ndarray) -> None:
        """Say what the next motion is for, (3,) [m]: its target is but a point on the way."""
        self._aim = place

    def aim(self) -> np.ndarray | None:
        """Return what the motion since the last call was for, (3,) [m]; None without any."""
        aim, self._aim = self._aim, None
        return aim

    def towards(self, position: np.ndarray, speed: float = 1.0) -> np.ndarray:
        """Return the action that moves to `position` and the wanted axes, (7,).

        :param speed: fraction of the greatest translation per step.
        """
        if self._aim is None:
            self._aim = position
        limit = MAX_TRANSLATION * speed
        move = _shortened(GAIN * (position - self.position) / POSITION_SCALE, limit)
        turn = _shortened(GAIN * rotation_error(self.rotation, self.axes) / ROTATION_SCALE,
                          MAX_ROTATION)
        motion = np.concatenate([move, turn])
        if np.linalg.norm(motion) < _MIN_MOTION:
            motion[2] = _MIN_MOTION
        return np.append(motion, self.gripper)


def rotation_error(wanted: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Rotation vector about the world's axes from `axes` to `wanted`, (3,) [rad]."""
    return Rotation.from_matrix(wanted @ axes.T).as_rotvec()


def _shortened(vector: np.ndarray, limit: float) -> np.ndarray:
    """Scale a vector so that no component exceeds `limit`; its direction stays."""
    return vector * min(1.0, limit / max(float(np.abs(vector).max()), 1e-9))
