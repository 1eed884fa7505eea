# SPDX-License-Identifier: Apache-2.0
"""`python -m worldvla_ros.training.tokenise`: demonstrations in, a token store out."""

import argparse
from collections.abc import Iterator
from pathlib import Path
import sys

import numpy as np

from worldvla_ros.errors import WorldVLAError
from worldvla_ros.model.image_tokenizer import load_image_tokenizer
from worldvla_ros.training.libero_hdf5 import Episode, demonstration_files, read_episodes
from worldvla_ros.training.samples import moving_steps
from worldvla_ros.training.store import write_store


def filtered_episodes(folder: Path, drop_no_ops: bool) -> Iterator[Episode]:
    """Yield the successful episodes below a folder.

    :param drop_no_ops: apply the published filter, as far as neither the label nor the executed
        action moves anything.
    """
    for path in demonstration_files(folder):
        for episode in read_episodes(path, folder if folder.is_dir() else None):
            if not episode.success:
                continue
            if drop_no_ops:
                moving = moving_steps(episode.actions) | moving_steps(episode.executed)
                if not moving.any():
                    continue
                episode = episode.kept(moving)
            yield episode


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('demonstrations', type=Path, help='folder with LIBERO-format HDF5 files')
    parser.add_argument('--tokenizer', type=Path, required=True, help='image tokenizer folder')
    parser.add_argument('--out', type=Path, required=True, help='folder of the new store')
    parser.add_argument('--image-size', type=int, default=128, help='side of the frames [px]')
    parser.add_argument('--drop-no-ops', action='store_true',
                        help='apply the published filter; replay what is left before you trust it')
    options = parser.parse_args(arguments)
    try:
        tokenizer = load_image_tokenizer(options.tokenizer)
        episodes = filtered_episodes(options.demonstrations, options.drop_no_ops)
        store = write_store(options.out, episodes, tokenizer, options.image_size)
    except WorldVLAError as error:
        print(f'tokenise: {error}', file=sys.stderr)
        return 1
    used = len(np.unique(store.codes))
    print(f'{len(store.episodes)} episodes, {len(store.codes)} frames, {used} of '
          f'{store.header.num_codes} codes used, tokenizer {store.header.tokenizer}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
