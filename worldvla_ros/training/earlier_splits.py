# SPDX-License-Identifier: Apache-2.0
"""By which splits the checkpoint that a run starts from was trained before.

It may have seen what this run holds out. train.yaml of every checkpoint says its own split and,
as `data.earlier_splits`, those before it. Names of splits are all that is compared: of data that
grew since, or are others, the same split may hold out what was seen, and this warns of nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from worldvla_ros.config import read_yaml
from worldvla_ros.training.run_folder import CONFIG_FILE
from worldvla_ros.training.settings import TrainConfig

HASHED_WHOLE = 'hashed of before 2026-11-28'
"""Of all moving steps, see `splits`: what 'hashed' means without `data.earlier_splits`."""
UNKNOWN = 'unknown (no train.yaml)'
"""Of a checkpoint that does not say it, such as a converted one."""


def earlier_splits(checkpoint: str | Path, split: str) -> tuple[str, ...]:
    """Return the splits other than this one that a checkpoint says it was trained with.

    UNKNOWN where it says nothing.
    """
    path = Path(checkpoint) / CONFIG_FILE
    data = read_yaml(path).get('data') if path.is_file() else None
    if not isinstance(data, Mapping):
        return (UNKNOWN,)
    own = data.get('split')
    if own == 'hashed' and 'earlier_splits' not in data:
        own = HASHED_WHOLE
    found = dict.fromkeys([*(data.get('earlier_splits') or ()), *([own] if own else ())])
    return tuple(name for name in found if name != split)


def with_earlier_splits(config: TrainConfig, source: str | Path) -> TrainConfig:
    """Return the configuration of a run that goes on from a checkpoint, with its splits.

    :param source: the checkpoint; empty for none.
    """
    found = earlier_splits(source, config.data.split) if source else ()
    names = tuple(dict.fromkeys([*config.data.earlier_splits, *found]))
    return replace(config, data=replace(config.data, earlier_splits=names))


def leak_warning(split: str, earlier: Sequence[str]) -> str:
    """Return a line that says what the held-out episodes of a split may be worth; else empty."""
    if not earlier:
        return ''
    return (f'warning: the weights were trained with split {" and ".join(earlier)} before, so '
            f'they may have seen episodes that split {split} holds out, and what is measured on '
            'these may be too good; start from a checkpoint of the same data.split, or measure on '
            'demonstrations that are new')
