# SPDX-License-Identifier: Apache-2.0
"""Frames of demonstrations as one small video, to train an image tokenizer on a lent machine.

    python benchmarks/travelling_frames.py pack DEMONSTRATIONS VIDEO.mp4 [--wrist]
    python3 benchmarks/travelling_frames.py unpack VIDEO.mp4 DEMONSTRATIONS

A frame takes 1 to 2 kB instead of 40: H.264 with full colour, at a quality where its error (about
44 dB) is far below the tokenizer's. What is unpacked has frames alone, no actions to learn from;
those of a wrist camera are episodes of their own.
"""

import argparse
from collections.abc import Iterator, Sequence
from itertools import chain
import json
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from worldvla_ros.datatypes import ACTION_DIM
from worldvla_ros.recording.demonstration_file import FILE_ENDING
from worldvla_ros.training.libero_hdf5 import (
    FRAMES,
    WRIST_FRAMES,
    demonstration_files,
    first_frames,
    read_episodes,
)

QUALITY = '12'  # H.264's crf
TASK = 'frames'  # all episodes become those of one task, so that a tenth of them is held out
SPREAD = 0.618034  # of a turn: puts episodes of every task among those that are held out


def pack(folder: Path, video: Path, wrist: bool) -> None:
    """Write the frames of all demonstrations and, beside them, the lengths of the episodes.

    Refuses frames of two sizes, before it writes anything: a video has one.
    """
    from imageio_ffmpeg import write_frames
    files = demonstration_files(folder)
    _refuse_two_sizes(files, (FRAMES, WRIST_FRAMES) if wrist else (FRAMES,))
    episodes = chain.from_iterable(read_episodes(path, folder, wrist=wrist) for path in files)
    lengths: list[int] = []
    writer = None
    for frames in (frames for episode in episodes for frames in (episode.frames, episode.wrist)
                   if frames is not None):
        if writer is None:
            height, width = frames.shape[1:3]
            writer = write_frames(
                str(video), (width, height), codec='libx264', pix_fmt_out='yuv444p', quality=None,
                macro_block_size=1, output_params=['-crf', QUALITY, '-preset', 'fast'])
            writer.send(None)
        for frame in frames:
            writer.send(np.ascontiguousarray(frame))
        lengths.append(len(frames))
    if writer is not None:
        writer.close()
    video.with_suffix('.json').write_text(json.dumps(lengths) + '\n')
    print(f'{len(lengths)} episodes, {sum(lengths)} frames, {video.stat().st_size / 1e6:.1f} MB')


def _refuse_two_sizes(files: Sequence[Path], cameras: Sequence[str]) -> None:
    first = None
    for path in files:
        for camera in cameras:
            for name, frame in first_frames(path, camera).items():
                size, where = ' x '.join(map(str, frame.shape[:2])), f'{path}, {name}, {camera}'
                first = first or (size, where)
                if size != first[0]:
                    raise SystemExit(f'{where} has frames of {size} px, expected {first[0]} px as '
                                     f'in {first[1]}; pack each size into a video of its own, or '
                                     'render one again (python -m worldvla_sim.rerender)')


def unpack(video: Path, folder: Path) -> None:
    """Write demonstrations that hold the frames of a video."""
    lengths: list[int] = json.loads(video.with_suffix('.json').read_text())
    order = np.argsort(np.argsort(np.arange(len(lengths)) * SPREAD % 1))
    folder.mkdir(parents=True)
    frames = _frames(video)
    with h5py.File(folder / f'{TASK}{FILE_ENDING}', 'w') as file:
        for length, number in zip(lengths, order, strict=True):
            group = file.create_group(f'data/demo_{number}')
            pictures = np.stack([next(frames) for _ in range(length)])
            group[FRAMES] = pictures[:, ::-1, ::-1]  # as LIBERO stores them
            group['actions'] = group['executed_actions'] = np.zeros((length, ACTION_DIM))
            group['dones'] = np.arange(length) == length - 1


def _frames(video: Path) -> Iterator[NDArray[np.uint8]]:
    import cv2
    capture = cv2.VideoCapture(str(video))
    while True:
        there, frame = capture.read()
        if not there:
            raise SystemExit(f'{video} has fewer frames than the list beside it')
        yield np.asarray(frame[:, :, ::-1], np.uint8)


def main() -> None:
    """Run one of both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('what', choices=('pack', 'unpack'))
    parser.add_argument('source', type=Path)
    parser.add_argument('target', type=Path)
    parser.add_argument('--wrist', action='store_true', help='pack: the wrist camera, too')
    options = parser.parse_args()
    if options.what == 'pack':
        pack(options.source, options.target, options.wrist)
    else:
        unpack(options.source, options.target)


if __name__ == '__main__':
    main()
