# SPDX-License-Identifier: Apache-2.0
"""Settings of the LIBERO bridge; the node declares them as its parameters."""

from dataclasses import dataclass, field

from worldvla_ros.config import bounded, check
from worldvla_ros.safety.command import ActionScale
from worldvla_sim.libero_env import LOCKSTEP, MSAA_LEVELS, REALTIME, ROBOTS
from worldvla_sim.libero_setup import ASSET_CHOICES


@dataclass(frozen=True)
class BridgeSettings:
    """How LIBERO runs and what it shows."""

    mode: str = bounded(
        LOCKSTEP, choices=(LOCKSTEP, REALTIME), read_only=True,
        doc='lockstep: a control step waits for its command, so scores compare with published '
            'tables; realtime: 20 Hz whatever the policy does')
    assets: str = bounded(
        'auto', choices=ASSET_CHOICES, read_only=True,
        doc='Meshes and textures: the built-in pack, LIBERO\'s own, or its own where found')
    robot: str = bounded(
        'light', choices=ROBOTS, read_only=True,
        doc='light: simplified visual meshes, two to three times faster; same physics')
    msaa: int = bounded(
        0, choices=MSAA_LEVELS, read_only=True, doc='Samples per pixel; 0 is faster')
    image_size: int = bounded(
        256, unit='px', minimum=32, maximum=2048, read_only=True, doc='Side of camera images')
    wrist: bool = bounded(False, read_only=True, doc='Publish the wrist camera, too')
    max_steps: int = bounded(
        0, minimum=0, maximum=100000, read_only=True,
        doc='Control steps of an episode; 0: the published limit of the suite')
    settle_steps: int = bounded(
        10, minimum=0, maximum=1000, read_only=True,
        doc='No-op steps before an episode, because initial states are stored unsettled')
    command_timeout: float = bounded(
        0.2, unit='s', minimum=0.05, maximum=10.0, read_only=True,
        doc='realtime: a command older than this is replaced by zero motion')
    base_frame: str = bounded('panda_link0', read_only=True, doc='frame_id of ee_pose')
    scale: ActionScale = field(default_factory=ActionScale)

    def __post_init__(self) -> None:
        """Refuse values outside the ranges."""
        check(self)

    @property
    def lockstep(self) -> bool:
        """Whether a control step waits for its command."""
        return self.mode == LOCKSTEP
