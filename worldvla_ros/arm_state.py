# SPDX-License-Identifier: Apache-2.0
"""What the arm knows of itself, as policies that read its state see it.

Position and gripper are those of RynnVLA-002 (arXiv 2511.17502), which adds the state to
WorldVLA's prompt. Ours is relative to the robot's base, not to the world, and its rotation to a
tool that points down, because there a rotation vector jumps from one sign to the other.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

_TOOL_DOWN = Rotation.from_rotvec([np.pi, 0.0, 0.0])  # z axis of the tool against the base's


def arm_state(position: ArrayLike, rotation: Rotation, fingers: ArrayLike
              ) -> NDArray[np.float64]:
    """Return the state of the arm (7,), or of T steps (T, 7).

    :param position: of the end effector in the base frame, (3,) or (T, 3) [m]
    :param rotation: of the end effector in the base frame, one or T
    :param fingers: positions of the gripper's joints, (n,) or (T, n) [m]; the fingers of a
        parallel gripper may count in opposite directions
    """
    opening = np.abs(np.asarray(fingers, np.float64)).sum(-1, keepdims=True)
    turned = (rotation * _TOOL_DOWN.inv()).as_rotvec()
    return np.concatenate([np.asarray(position, np.float64), turned, opening], axis=-1)
