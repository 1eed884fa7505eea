# SPDX-License-Identifier: Apache-2.0
"""Look at demonstrations: table, contact sheet, video, action histogram.

Usage: `python -m worldvla_sim.view_demos --help`. What robosuite rendered is shown upright and not
mirrored, which is not as policies see it; what a robot's camera took, as it took it.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
import sys

import numpy as np

from worldvla_ros.datatypes import ACTION_AXES
from worldvla_ros.errors import ConfigError, WorldVLAError
from worldvla_ros.training.episodes import Episode
from worldvla_ros.training.libero_hdf5 import episode_actions, read_episode
from worldvla_ros.training.samples import moving_steps
from worldvla_ros.whole_files import write_whole
from worldvla_sim import pictures
from worldvla_sim.demonstrations import open_demonstrations
from worldvla_sim.libero_env import CONTROL_PERIOD

_SHEET_FRAMES, _SHEET_COLUMNS = 24, 6


def _write_picture(path: Path, write: Callable[[Path], None]) -> None:
    """Write a picture or a video whole or not at all; ConfigError when it cannot be written."""
    if not path.parent.is_dir():
        raise ConfigError(f'cannot write {path}: there is no folder {path.parent}; make it, or '
                          f'name another')
    try:
        write_whole(path, write)
    except OSError as error:
        raise ConfigError(f'cannot write {path}: {error}') from error


def natural(episode: Episode, path: Path) -> np.ndarray:
    """Return the frames (T, H, W, 3) of an episode as people see the scene.

    Policies see robosuite's pictures mirrored; its files say how they were made.
    """
    with open_demonstrations(path) as data:
        return episode.frames[:, :, ::-1] if 'env_args' in data.attrs else episode.frames


def save_video(frames: np.ndarray, path: Path) -> None:
    """Write frames (T, H, W, 3) as an H.264 mp4 at the control rate."""
    def write(draft: Path) -> None:
        with pictures.VideoWriter(draft, frames.shape[1:3], 1 / CONTROL_PERIOD) as video:
            for frame in frames:
                video.add(frame)
    _write_picture(path, write)


def save_sheet(frames: np.ndarray, path: Path) -> None:
    """Lay evenly spaced frames (T, H, W, 3) out in rows, from the first step to the last."""
    steps = np.unique(np.linspace(0, len(frames) - 1, _SHEET_FRAMES).round().astype(int))
    rows = [(f'steps {part[0]} to {part[-1]}', [frames[step] for step in part])
            for part in np.array_split(steps, -(-len(steps) // _SHEET_COLUMNS))]
    _write_picture(path, lambda draft: pictures.save_contact_sheet(draft, rows))


def statistics_table(demos: Sequence[np.ndarray]) -> str:
    """Return lengths and the range of every action axis over all demonstrations.

    :param demos: actions of each demonstration, (T, 7).
    """
    lengths, actions = [len(demo) for demo in demos], np.concatenate(demos)
    idle = sum(int((~moving_steps(demo)).sum()) for demo in demos)
    lines = [f'{len(demos)} demonstrations, {sum(lengths)} steps; length min {min(lengths)}, '
             f'mean {np.mean(lengths):.0f}, max {max(lengths)}; {idle} no-ops, '
             'which the published filter drops',
             f'{"axis":>8} {"min":>7} {"1 %":>7} {"mean":>7} {"99 %":>7} {"max":>7} {"std":>7}']
    for name, values in zip(ACTION_AXES, actions.T, strict=True):
        low, high = np.percentile(values, [1, 99])
        lines.append(f'{name:>8} {values.min():7.3f} {low:7.3f} {values.mean():7.3f} {high:7.3f} '
                     f'{values.max():7.3f} {values.std():7.3f}')
    return '\n'.join(lines)


def plot_histograms(actions: np.ndarray, path: Path) -> None:
    """Plot the distribution of every action axis, (N, 7), as a PNG with logarithmic counts."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(14, 5), layout='constrained')
    panels = figure.subplots(2, 4).ravel()
    for panel, name, values in zip(panels, ACTION_AXES, actions.T, strict=False):
        panel.hist(values, bins=np.linspace(-1, 1, 65), color='#31688e')
        panel.set(title=name, yscale='log', xlim=(-1.05, 1.05))
    panels[4].set(xlabel='controller input', ylabel='steps')
    panels[7].axis('off')
    _write_picture(path, lambda draft: figure.savefig(draft, format='png', dpi=100))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='python -m worldvla_sim.view_demos',
                                     description='Look at a LIBERO-format demonstration file.')
    parser.add_argument('file', type=Path)
    parser.add_argument('--demo', type=int, default=0, help='for --mp4 and --sheet (default: 0)')
    parser.add_argument('--mp4', type=Path, help='write a video of the demonstration')
    parser.add_argument('--sheet', type=Path, help='write a contact sheet (PNG)')
    parser.add_argument('--histogram', type=Path, help='plot the actions of the whole file (PNG)')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the statistics of a file and write the pictures asked for."""
    options = _parser().parse_args(argv)
    try:
        episode = read_episode(options.file, f'demo_{options.demo}')
        actions = [labels for labels, _ in episode_actions(options.file).values()]
        print(f'{episode.instruction}\n{statistics_table(actions)}')
        if options.mp4:
            save_video(natural(episode, options.file), options.mp4)
        if options.sheet:
            save_sheet(natural(episode, options.file), options.sheet)
        if options.histogram:
            plot_histograms(np.concatenate(actions), options.histogram)
    except WorldVLAError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
