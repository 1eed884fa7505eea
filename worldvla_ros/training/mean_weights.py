# SPDX-License-Identifier: Apache-2.0
"""`python -m worldvla_ros.training.mean_weights A B --out C`: the mean of several checkpoints.

Of one that was trained on from another on other data, the mean may keep what the further training
forgets (model soups, Wortsman et al. 2022, arXiv 2203.05482). Of worldvla-mini-libero, episodes of
libero_goal of 100: 89 before, 86 after 1,650 steps (a third of them of libero_10), 89 the mean.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
import sys
from typing import Any

import torch
import yaml

from worldvla_ros.config import read_yaml
from worldvla_ros.errors import CheckpointError, WorldVLAError
from worldvla_ros.model.image_tokenizer import tokenizer_fingerprint
from worldvla_ros.policy.pretrained import Pretrained
from worldvla_ros.training.earlier_splits import earlier_splits
from worldvla_ros.training.run_folder import (
    CONFIG_FILE,
    MAX_SHARD_BYTES,
    save_pretrained,
    write_folder,
)

_MAY_DIFFER = ('name', 'notes', 'image_tokenizer')  # of policy.json; the tokenizer is compared


@torch.no_grad()
def mean_of(checkpoints: Sequence[Pretrained]) -> Pretrained:
    """Return the last checkpoint with the mean of the weights of all, float32.

    Raises CheckpointError for networks, tokenizers or settings that differ.
    """
    last = checkpoints[-1]
    for one in checkpoints:
        if (differing := _differing(one, last)):
            raise CheckpointError(f'{one.settings.name} and {last.settings.name} differ in '
                                  f'{differing}; only what was trained on from one another, or '
                                  'from the same, has a mean')
    states = [one.model.state_dict() for one in checkpoints]
    last.model.load_state_dict({
        name: torch.stack([state[name].float() for state in states]).mean(0)
        for name in states[-1]})
    return last


def _differing(one: Pretrained, other: Pretrained) -> str:
    """Name what keeps the weights of two checkpoints from meaning the same; empty if nothing."""
    if one.model.config != other.model.config:
        return 'the shape or the vocabulary of the network'
    if tokenizer_fingerprint(one.image_tokenizer) != tokenizer_fingerprint(other.image_tokenizer):
        return 'the image tokenizer'
    sentence = one.settings.action_prompt + other.settings.action_prompt
    if one.text_tokenizer.encode(sentence) != other.text_tokenizer.encode(sentence):
        return 'the text tokenizer'
    mine, theirs = asdict(one.settings), asdict(other.settings)
    return ', '.join(f'{name} of policy.json' for name in mine
                     if name not in _MAY_DIFFER and mine[name] != theirs[name])


def write_mean(folders: Sequence[Path], out: Path) -> None:
    """Write the mean of checkpoints in bfloat16, with the settings and train.yaml of the last.

    Raises CheckpointError, also where `out` exists, TrainingError on a full disk.
    """
    if out.exists():
        raise CheckpointError(f'{out} exists; give a folder that does not')
    mean = mean_of([Pretrained.load(folder, dtype='float32') for folder in folders])
    mean.model.to(torch.bfloat16)
    settings = replace(mean.settings, notes=f'mean of the weights of {len(folders)} checkpoints; '
                                            f'the last: {mean.settings.notes}')
    recipe = _recipe(folders)

    def write(draft: Path) -> None:
        save_pretrained(replace(mean, settings=settings), draft, max_shard_bytes=MAX_SHARD_BYTES)
        if recipe:
            (draft / CONFIG_FILE).write_text(yaml.safe_dump(recipe))
    write_folder(out, f'.draft-{out.name}-', write)


def _recipe(folders: Sequence[Path]) -> dict[str, Any]:
    """Return train.yaml of the last checkpoint with the splits of all; empty where it has none."""
    if not (path := folders[-1] / CONFIG_FILE).is_file():
        return {}
    recipe = dict(read_yaml(path))
    data = recipe.get('data')
    data = dict(data) if isinstance(data, Mapping) else {}
    found = [name for folder in folders for name in earlier_splits(folder, data.get('split', ''))]
    return {**recipe, 'data': {**data, 'earlier_splits': list(dict.fromkeys(found))}}


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('checkpoints', nargs='+', type=Path, metavar='FOLDER',
                        help='two or more, of one network; the last gives the settings')
    parser.add_argument('--out', type=Path, required=True, help='folder of the mean')
    options = parser.parse_args(arguments)
    if len(options.checkpoints) < 2:
        parser.error('a mean takes two checkpoints or more')
    try:
        write_mean(options.checkpoints, options.out)
    except WorldVLAError as error:
        print(f'mean_weights: {error}', file=sys.stderr)
        return 2
    print(f'mean of {len(options.checkpoints)} checkpoints: {options.out}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
