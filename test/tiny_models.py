# SPDX-License-Identifier: Apache-2.0
"""Small seeded models and prompts for tests that need some weights, not good ones."""

from dataclasses import replace

import numpy as np
import torch

from worldvla_ros.model.engine.chunk import StaticChunkDecoder
from worldvla_ros.model.transformer import Transformer, TransformerConfig
from worldvla_ros.tokens.sequence import action_block, image_block
from worldvla_ros.tokens.vocab import Vocabulary

NUM_TEXT = 40
VOCABULARY = Vocabulary.compact(num_text_tokens=NUM_TEXT, num_codes=64)


def tiny_model(seed: int = 0, *, layers: int = 2, hidden: int = 32, heads: int = 4,
               qk_norm_rows: int = 1, image_grid: tuple[int, int] | None = None,
               dtype: torch.dtype = torch.float32) -> Transformer:
    """Return a random transformer whose norms have random gains too."""
    config = TransformerConfig(hidden_size=hidden, intermediate_size=2 * hidden,
                               num_layers=layers, num_heads=heads, qk_norm_rows=qk_norm_rows,
                               image_grid=image_grid, vocabulary=VOCABULARY)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Transformer(config)
        for name, parameter in model.named_parameters():
            torch.nn.init.normal_(parameter, mean=float(name.endswith('norm.weight')), std=0.2)
    return model.to(dtype).eval()


def static_chunk_decoder(model, num_actions, *, prompt_lengths, newest_rows, chunk_mask, choice,
                         weights, drafts):
    """Stand for `model.chunk_decoder.chunk_decoder`: the engine that a GPU gets, on any device."""
    return StaticChunkDecoder(model, num_actions, prompt_buckets=prompt_lengths,
                              newest_rows=newest_rows, choice=choice, drafts=drafts)


def attentive_model(num_text_tokens: int, with_state: bool = False) -> Transformer:
    """Return a random transformer with weights so large that attention looks at the action."""
    vocabulary = Vocabulary.compact(num_text_tokens, 64)
    config = replace(tiny_model().config,
                     vocabulary=vocabulary.with_state() if with_state else vocabulary)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Transformer(config).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    return model


def random_image(rng: np.random.Generator, grid: tuple[int, int]) -> np.ndarray:
    """Return code indices [2h, 2w]."""
    return rng.integers(0, VOCABULARY.num_codes, (2 * grid[0], 2 * grid[1]))


def random_action(rng: np.random.Generator) -> np.ndarray:
    """Return the tokens [7] of one action."""
    return rng.integers(VOCABULARY.bins.start, VOCABULARY.bins.stop, 7)


def action_prompt(rng: np.random.Generator, num_images: int, grid: tuple[int, int],
                  num_text: int = 6) -> np.ndarray:
    """Return a prompt of the action branch: BOS, text, images, separator."""
    text = rng.integers(1, NUM_TEXT, num_text)
    images = [image_block(random_image(rng, grid), VOCABULARY) for _ in range(num_images)]
    return np.concatenate(([VOCABULARY.bos], text, *images, [VOCABULARY.separator]))


def world_prompt(rng: np.random.Generator, grid: tuple[int, int]) -> np.ndarray:
    """Return a prompt of the world branch: BOS, text, image, action, separator."""
    return np.concatenate((action_prompt(rng, 1, grid)[:-1],
                           action_block(random_action(rng), VOCABULARY),
                           [VOCABULARY.separator]))
