# SPDX-License-Identifier: Apache-2.0
"""Which demonstrations are held out: one rule for policies, image tokenizers and their metrics.

    hashed      by a hash of the last actions, one in ten: the same demonstration is on the same
                side in every store, in whichever folder it lies, whatever is recorded beside it
                later, and whether it is one of LIBERO's own or was rendered again
    numeric     the last tenth of each file by number: nothing of a file with less than ten
    published   the last tenth of each file by name, as the public code does (2 after 10: of 50
                demonstrations 5 to 9 are held out)

A rule that knows a demonstration by its folder would hold out another one where only that folder
is given, and the frames of a demonstration that was rendered again could be on both sides.

Glances (`rerender --scatter`) show the arm of their source with other actions, so 'hashed' may
hold out the one and not the other; 'numeric' and 'published' keep both on one side.

Until 2026-11-28 all moving steps were hashed, of which LIBERO's own files, read without their
first action, have one less than a copy that was rendered again: checkpoints of 'hashed' from
before held out other episodes, see `earlier_splits`.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import hashlib
import math

import numpy as np
from numpy.typing import NDArray

from worldvla_ros.training.replay_list import kept_steps

SPLITS = ('hashed', 'numeric', 'published')
TRAIN_SHARE = 0.9  # of the episodes of each task (paper, section 4.1)
PIECE = '.'  # in the name of a part of a demonstration, before its number
HASHED_STEPS = 32  # that move, the last ones; the shortest of 360 demonstrations had 64
Key = tuple[str, str]  # task and name of an episode
Recorded = tuple[NDArray[np.floating], NDArray[np.floating]]  # labels, executed: (T, 7)


def draw(name: str, actions: NDArray[np.floating], executed: NDArray[np.floating]) -> float:
    """Return what stands for chance in 'hashed': in [0, 1), from what moves of an episode.

    In float32, as a store keeps actions (T, 7), and without the no-ops, so that the published
    filter changes nothing. From the end, since the first action is lost where frames are read a
    step late (`libero_hdf5`). What has no actions, such as frames alone, goes by its name.
    """
    both = np.stack([actions, executed]).astype(np.float32)
    moved = both[:, kept_steps(both[0], both[1])][:, -HASHED_STEPS:]
    digest = hashlib.sha256(moved.tobytes() or name.encode()).digest()
    return int.from_bytes(digest[:6], 'big') / 2 ** 48


def split(recorded: Mapping[Key, Recorded], order: str) -> tuple[list[Key], list[Key]]:
    """Return which episodes are for training and which are held out, task by task.

    The pieces of a demonstration that was cut (`Episode.pieces`) are drawn and stay together.

    :param recorded: labels and executed actions (T, 7) of each episode, pieces in their order.
    :param order: of SPLITS.
    """
    by_task: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for task, name in recorded:
        by_task[task][name.partition(PIECE)[0]].append(name)
    sides: tuple[list[Key], list[Key]] = [], []
    for task, pieces in by_task.items():
        if order == 'hashed':
            draws = {name: _draw_whole(name, [recorded[task, piece] for piece in those])
                     for name, those in pieces.items()}
            parts = tuple([name for name, value in draws.items()
                           if (value < TRAIN_SHARE) == train] for train in (True, False))
        else:
            parts = split_names(list(pieces), order)
        for side, part in zip(sides, parts, strict=True):
            side += [(task, piece) for name in part for piece in pieces[name]]
    return sides


def _draw_whole(name: str, pieces: Sequence[Recorded]) -> float:
    labels, executed = zip(*pieces, strict=True)
    return draw(name, np.concatenate(labels), np.concatenate(executed))


def split_names(names: Sequence[str], order: str) -> tuple[list[str], list[str]]:
    """Split the demonstrations of one file, named `..._<number>`, for training and held out.

    :param order: 'published' or 'numeric'; the first ceil(0.9 n) in it are for training.
    """
    keys = {'published': lambda name: name, 'numeric': lambda name: int(name.rpartition('_')[2])}
    ordered = sorted(names, key=keys[order])
    # the product first loses a rounding error: 0.9 * 10 is 9, not 9.000000000000002
    count = math.ceil(round(TRAIN_SHARE * len(ordered), 9))
    return ordered[:count], ordered[count:]


@dataclass(frozen=True)
class SplitCounts:
    """How many episodes of each task are for training and held out, whatever their folders."""

    order: str
    by_task: dict[str, tuple[int, int]]

    @classmethod
    def of(cls, order: str, train: Sequence[str], held_out: Sequence[str]) -> 'SplitCounts':
        """Count episodes by what says their task, a sentence or the name of a file."""
        sides = Counter(train), Counter(held_out)
        return cls(order, {task: (sides[0][task], sides[1][task])
                           for task in sorted({*train, *held_out})})

    def in_words(self) -> str:
        """Return the counts, alike ones once, and a warning that names tasks without any."""
        train, held = (sum(pair[side] for pair in self.by_task.values()) for side in (0, 1))
        alike = ', '.join(f'{one}+{other} of {count} task{"s" if count > 1 else ""}'
                          for (one, other), count in Counter(self.by_task.values()).most_common())
        said = (f'split {self.order}: {train} episodes for training + {held} held out '
                f'({alike})')
        if missing := [task for task, (_, count) in self.by_task.items() if not count]:
            said += (f'\nwarning: nothing is held out of {len(missing)} of {len(self.by_task)} '
                     f'tasks: {"; ".join(missing)}')
        return said
