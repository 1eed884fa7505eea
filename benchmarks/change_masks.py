# SPDX-License-Identifier: Apache-2.0
"""Which codes of real frames differ from those of the frame one control step before.

What changes in a frame lies together (the arm, what it holds), and how much of it differs from
step to step; drafts of imagined frames are timed with such changes. change_masks.npz was made
from the store that config/train/ablation.yaml describes (libero_object, 192 px, 12 x 12 codes of
the image tokenizer of worldvla-mini):

    python benchmarks/change_masks.py out/ablation/store
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from worldvla_ros.training.store import TokenStore

FILE = Path(__file__).with_name('change_masks.npz')
COUNT = 64  # masks


def change_masks(side: int) -> NDArray[np.bool_]:
    """Return the masks [COUNT, side, side], stretched from the side that they were made with."""
    with np.load(FILE) as file:
        own = int(file['side'])
        bits = np.unpackbits(file['bits'], axis=1, count=own ** 2)
    place = np.arange(side) * own // side
    return bits.reshape(-1, own, own)[:, place][:, :, place].astype(bool)


def pick(store: TokenStore, seed: int = 0) -> NDArray[np.bool_]:
    """Return the masks [COUNT, h, w] of pairs of consecutive frames from all over a store."""
    later = np.concatenate([np.arange(episode.start + 1, episode.start + episode.length)
                            for episode in store.episodes])
    chosen = np.sort(np.random.default_rng(seed).choice(later, COUNT, replace=False))
    masks: NDArray[np.bool_] = store.codes[chosen] != store.codes[chosen - 1]
    return masks


def main() -> None:
    """Write the masks of a store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('store', type=Path)
    masks = pick(TokenStore.open(parser.parse_args().store))
    bits = np.packbits(masks.reshape(COUNT, -1), axis=1)
    np.savez_compressed(FILE, bits=bits, side=masks.shape[-1])
    print(f'{FILE}: {masks.mean():.1%} of the codes differ, in one frame '
          f'{masks.mean((1, 2)).min():.1%} to {masks.mean((1, 2)).max():.1%}')


if __name__ == '__main__':
    main()
