# SPDX-License-Identifier: Apache-2.0
"""What ends a row of an ablation, or all of it."""

from worldvla_ros.errors import WorldVLAError


class AblationError(WorldVLAError):
    """A row could not be trained or evaluated."""
