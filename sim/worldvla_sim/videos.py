# SPDX-License-Identifier: Apache-2.0
"""Videos of evaluated episodes, failures above all: what went wrong is seen, not read."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
import textwrap
import warnings

import numpy as np

from worldvla_ros.errors import ConfigError
from worldvla_sim.episodes import EpisodeRecord
from worldvla_sim.libero_env import CONTROL_PERIOD
from worldvla_sim.pictures import VideoWriter, captioned

KINDS = ('failures', 'all')
_WIDTH = 512  # [px] about which a picture is enlarged to
_CHARACTERS = 68  # that fit into that width


@dataclass(frozen=True)
class EpisodeVideos:
    """Which episodes are kept as mp4 files, and where."""

    folder: Path
    kind: str = 'failures'  # or 'all'
    run: str = ''  # ends the names, so that the videos of two policies can share a folder

    def create(self) -> None:
        """Make the folder. Raises ConfigError if it cannot be."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f'cannot make the folder of the videos {self.folder}: {error}; '
                              f'name another with --videos') from error

    def keep(self, record: EpisodeRecord, frames: Sequence[np.ndarray]) -> EpisodeRecord:
        """Write the video if this episode is wanted, and return the record with its path.

        A video that cannot be written is warned of and changes no record: otherwise a full disk
        would turn failures into errors, which the success rate does not count.

        :param frames: (H, W, 3) uint8 RGB, the first one before the first step.
        """
        if record.success and self.kind != 'all':
            return record
        outcome = 'success' if record.success else 'failure'
        path = self.folder / (f'{record.suite}_task{record.task}_init{record.init_state}_'
                              f'{outcome}{f"_{self.run}" if self.run else ""}.mp4')
        try:
            save_episode_video(path, frames, record.instruction, outcome)
        except OSError as error:
            reason = error.strerror or str(error).partition('\n')[0]
            # Python shows the same text once, whatever the number of episodes.
            warnings.warn(f'episodes are left without a video in {self.folder}: {reason}',
                          RuntimeWarning, stacklevel=2)
            return record
        return replace(record, video=str(path))


def save_episode_video(path: Path, frames: Sequence[np.ndarray], instruction: str,
                       outcome: str) -> None:
    """Write frames in real time, with step, outcome and instruction below each picture.

    :param frames: (H, W, 3) uint8 RGB of one size, at least one.
    """
    scale = max(1, _WIDTH // frames[0].shape[1])
    lines = textwrap.wrap(instruction, max(10, _CHARACTERS * frames[0].shape[1] * scale // _WIDTH))

    def labelled(step: int) -> np.ndarray:
        picture = captioned(frames[step], f'step {step} of {len(frames) - 1}: {outcome}', scale)
        for line in lines:
            picture = captioned(picture, line)
        return picture
    height, width = labelled(0).shape[:2]
    with VideoWriter(path, (height, width), fps=1 / CONTROL_PERIOD) as video:
        for step in range(len(frames)):
            video.add(labelled(step))
