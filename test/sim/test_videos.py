# SPDX-License-Identifier: Apache-2.0
"""Videos of episodes: which are kept, and what they show."""

from pathlib import Path

import cv2
import imageio_ffmpeg
import numpy as np
import pytest

from worldvla_ros.errors import ConfigError
from worldvla_sim.episodes import EpisodeRecord
from worldvla_sim.videos import EpisodeVideos, save_episode_video

LONG = ('put the white mug on the plate and put the chocolate pudding to the right of the plate')
FRAMES = [np.full((64, 64, 3), (200, 20, 20 * step), np.uint8) for step in range(5)]


def record(success):
    return EpisodeRecord('libero_10', 6, LONG, 3, success, 4, None, 'builtin')


def pictures(path):
    video = cv2.VideoCapture(str(path))
    return [video.read()[1][..., ::-1] for _ in range(int(video.get(cv2.CAP_PROP_FRAME_COUNT)))]


@pytest.mark.parametrize(('kind', 'success', 'name'), [
    ('failures', False, 'libero_10_task6_init3_failure.mp4'), ('failures', True, None),
    ('all', True, 'libero_10_task6_init3_success.mp4')])
def test_failures_are_kept_and_successes_if_asked_for(kind, success, name, tmp_path):
    kept = EpisodeVideos(tmp_path, kind).keep(record(success), FRAMES)
    assert [path.name for path in tmp_path.iterdir()] == [name] * (name is not None)
    assert kept.video == (None if name is None else str(tmp_path / name))


def test_the_videos_of_two_runs_can_share_a_folder(tmp_path):
    for run in ('a1', 'b2'):
        EpisodeVideos(tmp_path, run=run).keep(record(False), FRAMES)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f'libero_10_task6_init3_failure_{run}.mp4' for run in ('a1', 'b2')]


def test_a_video_shows_every_frame_above_a_bar_for_each_line_of_text(tmp_path):
    save_episode_video(tmp_path / 'a.mp4', FRAMES, LONG, 'failure')
    shown = pictures(tmp_path / 'a.mp4')
    assert len(shown) == len(FRAMES)
    height, width, _ = shown[0].shape
    assert width == 512 and height - 512 >= 3 * 20, 'outcome, and two lines of instruction'
    for step, picture in enumerate(shown):
        assert np.abs(picture[200, 200].astype(int) - (200, 20, 20 * step)).max() < 30
        for bar in np.array_split(picture[512:], 3):
            assert bar.max() > 150, 'there is text'


FULL_DISK = """#!/bin/sh
ulimit -f 1
exec '{ffmpeg}' "$@"
"""
DIES = """#!/bin/sh
exit 1
"""


@pytest.mark.parametrize('program', [FULL_DISK, DIES])
def test_a_video_that_cannot_be_written_leaves_the_failure_a_failure(
        program, tmp_path, monkeypatch):
    encoder, folder = tmp_path / 'ffmpeg', tmp_path / 'videos'
    encoder.write_text(program.format(ffmpeg=imageio_ffmpeg.get_ffmpeg_exe()))
    encoder.chmod(0o755)
    monkeypatch.setenv('IMAGEIO_FFMPEG_EXE', str(encoder))
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), np.uint8)
    with pytest.warns(RuntimeWarning, match='without a video') as warned:
        kept = EpisodeVideos(folder).keep(record(False), noise)
        assert kept == EpisodeVideos(folder).keep(record(False), noise) == record(False)
    assert not list(folder.iterdir()), 'no part of a video is left'
    texts = {str(one.message) for one in warned if one.category is RuntimeWarning}
    assert len(texts) == 1, 'one text, which Python shows once'


def test_a_folder_that_cannot_be_made_is_a_clear_error():
    with pytest.raises(ConfigError, match='--videos'):
        EpisodeVideos(Path('/proc/nowhere')).create()
