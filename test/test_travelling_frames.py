# SPDX-License-Identifier: Apache-2.0
"""Frames that travel as a video: all come back, nearly as they were, with some held out."""

from dataclasses import replace
from pathlib import Path
import subprocess
import sys

import numpy as np
import pytest
from training_data import episode, with_wrist, write_hdf5

from worldvla_ros.training.frames import load_frames
from worldvla_ros.training.libero_hdf5 import read_episodes

TOOL = Path(__file__).parents[1] / 'benchmarks' / 'travelling_frames.py'


def smooth(number, steps):
    """Return an episode whose brightness tells its number, and each frame's step."""
    made, side = episode(number, steps=steps), 64
    ramp = np.linspace(0, 100, side)[None, :, None, None]
    shade = 10 * number + 2 * np.arange(steps)[:, None, None, None]
    frames = np.broadcast_to(ramp + shade, (steps, side, side, 3)).round().astype(np.uint8)
    return replace(made, frames=np.ascontiguousarray(frames))


def run(*arguments):
    return subprocess.run([sys.executable, str(TOOL), *map(str, arguments)], check=True,
                          capture_output=True, text=True).stdout


def test_frames_survive_the_journey(tmp_path):
    episodes = [smooth(number, 3 + number) for number in range(12)]
    for task in range(2):
        write_hdf5(tmp_path / 'demos' / f'task{task}_demo.hdf5', episodes[6 * task:6 * task + 6])
    said = run('pack', tmp_path / 'demos', tmp_path / 'frames.mp4')
    assert '12 episodes, 102 frames' in said
    run('unpack', tmp_path / 'frames.mp4', tmp_path / 'arrived')

    arrived = {len(one.frames): one.frames
               for one in read_episodes(tmp_path / 'arrived' / 'frames_demo.hdf5')}
    assert sorted(arrived) == [len(one.frames) for one in episodes]
    for one in episodes:
        difference = arrived[len(one.frames)].astype(int) - one.frames
        assert np.abs(difference).mean() < 2
    loaded = load_frames(tmp_path / 'arrived', 64, 1000, 'numeric')
    assert len(loaded.train) + len(loaded.held_out) == 102 and len(loaded.held_out) > 0


def test_the_wrist_camera_travels_as_episodes_of_its_own(tmp_path):
    write_hdf5(tmp_path / 'demos' / 'task_demo.hdf5', [with_wrist(smooth(1, 3))])
    assert '1 episodes, 3 frames' in run('pack', tmp_path / 'demos', tmp_path / 'one.mp4')
    said = run('pack', tmp_path / 'demos', tmp_path / 'both.mp4', '--wrist')
    assert '2 episodes, 6 frames' in said
    run('unpack', tmp_path / 'both.mp4', tmp_path / 'arrived')
    arrived = list(read_episodes(tmp_path / 'arrived' / 'frames_demo.hdf5'))
    dark, bright = sorted((one.frames for one in arrived), key=np.mean)
    wrist = with_wrist(smooth(1, 3)).wrist
    assert np.abs(dark.astype(int) - smooth(1, 3).frames).mean() < 2
    assert np.abs(bright.astype(int) - wrist).mean() < 2


@pytest.mark.parametrize('other', ['task', 'wrist'])
def test_frames_of_two_sizes_are_refused_before_anything_is_written(tmp_path, other):
    """Pins a bug: the later ones came back as garbage without a word."""
    small, large = smooth(1, 3), smooth(2, 3)
    large = replace(large, frames=large.frames.repeat(2, 1).repeat(2, 2))
    episodes = [replace(small, wrist=large.frames)] if other == 'wrist' else [small, large]
    for number, one in enumerate(episodes):
        write_hdf5(tmp_path / 'demos' / f'task{number}_demo.hdf5', [one])
    with pytest.raises(subprocess.CalledProcessError) as error:
        run('pack', tmp_path / 'demos', tmp_path / 'frames.mp4',
            *(['--wrist'] if other == 'wrist' else []))
    said = error.value.stderr
    odd = 'task0_demo.hdf5, demo_1, obs/eye_in' if other == 'wrist' else 'task1_demo.hdf5, demo_2'
    assert odd in said and '128 x 128 px, expected 64 x 64 px' in said
    assert 'task0_demo.hdf5, demo_1, obs/agentview_rgb' in said and 'Traceback' not in said
    assert not list(tmp_path.glob('frames.*'))
