# SPDX-License-Identifier: Apache-2.0
"""Passes that chunks of a trained checkpoint need over their drafts; a CPU counts them, too.

Over recorded episodes, from one frame every K steps, as a robot that carries chunks out asks.

    python benchmarks/draft_passes.py CHECKPOINT DEMO.hdf5 [...] [--horizons 5 10] [--most N]
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from report import Row, row, table_of

from worldvla_ros.model.engine.chunk import StaticChunkDecoder
from worldvla_ros.policy.pretrained import Pretrained
from worldvla_ros.tokens.action_tokenizer import BIN_CHOICES
from worldvla_ros.training.libero_hdf5 import read_episodes


def main() -> None:
    """Count for each K and each choice of bins."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', type=Path, help='folder')
    parser.add_argument('files', type=Path, nargs='+', help='the first episode of each is taken')
    parser.add_argument('--horizons', nargs='+', type=int, default=[5, 10], help='actions, K')
    parser.add_argument('--most', type=int, default=20, help='chunks of an episode')
    arguments = parser.parse_args()
    pretrained = Pretrained.load(arguments.checkpoint, dtype='float32')
    for K in arguments.horizons:
        episodes = [list(prompts(pretrained, path, K, arguments.most))
                    for path in arguments.files]
        rows = [passes(pretrained, episodes, K, choice) for choice in BIN_CHOICES]
        print('\n'.join(table_of(rows)), flush=True)


def prompts(pretrained: Pretrained, path: Path, K: int, most: int) -> Iterator[list[int]]:
    """Yield the prompts of every K-th frame of a file's first episode."""
    episode = next(iter(read_episodes(path, path.parent)))
    for step in range(0, min(len(episode.frames), most * K), K):
        state = None
        if pretrained.state_tokenizer is not None and episode.states is not None:
            state = pretrained.state_tokenizer.encode(episode.states[step])
        codes = pretrained.encode(episode.frames[step])
        yield pretrained.prompts.action(episode.instruction, [codes], state).tolist()


def passes(pretrained: Pretrained, episodes: list[list[list[int]]], K: int, choice: str) -> Row:
    """Return the mean passes of a chunk that is drafted by the one before it."""
    longest = max(len(prompt) for episode in episodes for prompt in episode)
    decoder = StaticChunkDecoder(pretrained.model, K, prompt_buckets=[longest],
                                 newest_rows=longest, choice=choice, drafts=True)
    counts = []
    for episode in episodes:
        decoder.forget()
        counts += [decoder.decode(prompt).passes for prompt in episode]
    return row(f'passes of a drafted chunk, {choice}', float(np.mean(counts)), 'passes', K,
               'of 7', runs=len(counts))


if __name__ == '__main__':
    main()
