# SPDX-License-Identifier: Apache-2.0
"""A small WorldVLA with seeded random weights, written and read like any other checkpoint.

It runs the whole real path before trained weights are there: the actions mean nothing, their
timing and their format do.
"""

import os
from pathlib import Path
import shutil

import torch

from worldvla_ros.model.checkpoint import save_model
from worldvla_ros.model.image_tokenizer import ImageTokenizer, save_image_tokenizer
from worldvla_ros.model.transformer import Transformer, TransformerConfig
from worldvla_ros.model.vqgan import ImageTokenizerConfig
from worldvla_ros.policy.pretrained import IMAGE_TOKENIZER_FOLDER
from worldvla_ros.policy.settings import POLICY_FILE, PolicySettings
from worldvla_ros.tokens.sequence import ACTION_PROMPT, WORLD_PROMPT
from worldvla_ros.tokens.text_tokenizer import TextTokenizer
from worldvla_ros.tokens.vocab import Vocabulary
from worldvla_ros.whole_files import draft_folder

FORMAT = 2
"""Raised whenever what is written changes, so that an old cache entry is not read."""

_OBJECTS = ('alphabet soup', 'cream cheese', 'salad dressing', 'bbq sauce', 'ketchup',
            'tomato sauce', 'butter', 'milk', 'chocolate pudding', 'orange juice')
_SENTENCES = (*(ACTION_PROMPT.format(instruction=f'pick up the {name} and place it in the basket')
                for name in _OBJECTS), WORLD_PROMPT)


def ensure_random_checkpoint(cache_dir: str | Path | None = None, seed: int = 0) -> Path:
    """Return the folder of the random checkpoint, making it on first use.

    :param cache_dir: default $XDG_CACHE_HOME/worldvla_ros, or ~/.cache/worldvla_ros.
    Several processes may call it at once: the folder appears complete or not at all.
    """
    cache = Path(cache_dir) if cache_dir else _default_cache()
    target = cache / f'random-small-v{FORMAT}-seed{seed}'
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    draft = draft_folder(cache, '.draft-')
    try:
        write_random_checkpoint(draft, seed)
        draft.rename(target)
    except OSError:
        if not target.is_dir():  # else another process was faster, with equal content
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def write_random_checkpoint(folder: Path, seed: int = 0) -> None:
    """Write a checkpoint of 8 M parameters for 256 px, two frames and five actions."""
    text_tokenizer = TextTokenizer.train(_SENTENCES, max_tokens=512)
    image_config = ImageTokenizerConfig(
        embed_dim=16, n_embed=1024, z_channels=16, ch=8, ch_mult=(1, 2, 4, 8, 8),
        num_res_blocks=1, norm_groups=8)
    vocabulary = Vocabulary.compact(text_tokenizer.num_tokens, image_config.n_embed)
    config = TransformerConfig(hidden_size=320, intermediate_size=864, num_layers=6, num_heads=5,
                               vocabulary=vocabulary)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Transformer(config)
        image_tokenizer = ImageTokenizer(image_config)
        torch.nn.init.normal_(model.lm_head.weight, std=0.1)  # neither flat nor certain
        torch.nn.init.normal_(image_tokenizer.quantize.embedding.weight, std=0.5)
    save_model(model, folder)
    save_image_tokenizer(image_tokenizer, folder / IMAGE_TOKENIZER_FOLDER)
    text_tokenizer.save(folder)
    PolicySettings(name='small WorldVLA', trained=False, image_size=256, history_length=2,
                   horizon=5, notes=f'random weights, seed {seed}; for tests and demonstrations '
                   'of everything around the model').save(folder / POLICY_FILE)


def _default_cache() -> Path:
    base = os.environ.get('XDG_CACHE_HOME')
    return (Path(base) if base else Path.home() / '.cache') / 'worldvla_ros'
