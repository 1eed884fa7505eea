# SPDX-License-Identifier: Apache-2.0
"""`python -m worldvla_ros.training.tokenise`: demonstrations in, a token store out."""

import argparse
from collections.abc import Iterator
from pathlib import Path
import sys

import numpy as np
from tqdm import tqdm

from worldvla_ros.arguments import positive_int
from worldvla_ros.errors import WorldVLAError
from worldvla_ros.model.image_tokenizer import load_image_tokenizer, tokenizer_fingerprint
from worldvla_ros.training.episodes import Episode
from worldvla_ros.training.failures import DatasetError
from worldvla_ros.training.libero_hdf5 import demonstration_files, read_episodes
from worldvla_ros.training.replay_list import ReplayList, trained_steps
from worldvla_ros.training.store import TokenStore
from worldvla_ros.training.store_writing import write_store


def filtered_episodes(folder: Path, drop_no_ops: bool, only: ReplayList | None = None,
                      task: str = '*', wrist: bool = False) -> Iterator[Episode]:
    """Yield the successful episodes below a folder, cut where objects were moved by hand.

    :param drop_no_ops: apply the published filter, as far as neither the label nor the executed
        action moves anything.
    :param only: keep what succeeded in these replays, of the same kind; None keeps all.
    :param task: pattern of the tasks to read.
    :param wrist: read the wrist camera, too.
    Raises DatasetError for an episode that is not among the replays.
    """
    for path in demonstration_files(folder, task):
        for episode in read_episodes(path, folder, wrist=wrist):
            if not episode.success:
                continue
            steps = trained_steps(episode.task, episode.name, episode.actions, episode.executed,
                                  only, drop_no_ops)
            yield from episode.pieces(steps)


def checked_replays(folder: Path, drop_no_ops: bool, file: Path | None) -> ReplayList | None:
    """Read the list of replays that training data is filtered by, None where it needs none.

    Raises DatasetError where no-ops are dropped and nobody looked what still succeeds, and for
    replays of the other kind.
    """
    only = None if file is None else ReplayList.load(file)
    if drop_no_ops and (only is None or not only.drop_no_ops):
        raise DatasetError(
            'what the filter leaves of a demonstration need not succeed any more: replay it with '
            f'`python -m worldvla_sim.replay {folder} --drop-no-ops --out FILE`, and give --only '
            'FILE')
    if only is not None and only.drop_no_ops and not drop_no_ops:
        raise DatasetError(f'{file} is of replays without no-ops; give --drop-no-ops too, or a '
                           'list of whole replays')
    return only


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('demonstrations', type=Path, help='folder with LIBERO-format HDF5 files')
    parser.add_argument('--tokenizer', type=Path, required=True, help='image tokenizer folder')
    parser.add_argument('--out', type=Path, required=True, help='folder of the new store')
    parser.add_argument('--image-size', type=positive_int, default=128,
                        help='side of the frames [px]')
    parser.add_argument('--task', default='*', metavar='PATTERN',
                        help="read these tasks alone, such as 'pick_up_the_milk*'")
    parser.add_argument('--wrist', action='store_true',
                        help='the wrist camera, too (`collect --wrist` records it)')
    parser.add_argument('--drop-no-ops', action='store_true',
                        help='apply the published filter; needs --only')
    parser.add_argument('--only', type=Path, metavar='FILE',
                        help='list of worldvla_sim.replay: keep the demonstrations that succeeded')
    parser.add_argument('--reuse', type=Path, metavar='STORE',
                        help='earlier store: of episodes that it has, only the first frame is '
                             'encoded again, to compare')
    options = parser.parse_args(arguments)
    try:
        tokenizer = load_image_tokenizer(options.tokenizer)
        only = checked_replays(options.demonstrations, options.drop_no_ops, options.only)
        chosen = filtered_episodes(options.demonstrations, options.drop_no_ops, only, options.task,
                                   options.wrist)
        episodes = tqdm(chosen, unit='episode', mininterval=1.0 if sys.stderr.isatty() else 30.0)
        reuse = None if options.reuse is None else TokenStore.open(
            options.reuse, tokenizer_fingerprint(tokenizer))
        store = write_store(options.out, episodes, tokenizer, options.image_size, reuse)
    except WorldVLAError as error:
        print(f'tokenise: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('tokenise: interrupted; nothing was written', file=sys.stderr)
        return 130
    cameras = [store.codes] if store.wrist_codes is None else [store.codes, store.wrist_codes]
    used = len(np.unique(np.concatenate(cameras)))
    print(f'{len(store.episodes)} episodes, {len(store.codes)} frames, {used} of '
          f'{store.header.num_codes} codes used, tokenizer {store.header.tokenizer}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
