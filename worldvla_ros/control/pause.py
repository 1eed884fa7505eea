# SPDX-License-Identifier: Apache-2.0
"""Whether somebody has paused the robot."""

from dataclasses import dataclass


@dataclass
class Pause:
    """It outlives the policy, as the e-stop does: who paused the robot lets it go on."""

    on: bool = False
