# SPDX-License-Identifier: Apache-2.0
"""Random models and prompts of the published shapes, for timing: values do not matter there."""

import numpy as np
import torch

from worldvla_ros.model.transformer import Transformer, TransformerConfig
from worldvla_ros.tokens.sequence import action_block, image_block
from worldvla_ros.tokens.vocab import VALUES_PER_ACTION, Vocabulary

NUM_TEXT = 32  # tokens of the instruction, BOS among them
NUM_WORDS = 300  # ids that its text is made of: all bytes, and some pairs of them


def random_model(config: TransformerConfig, dtype: torch.dtype, device: str = 'cpu'
                 ) -> Transformer:
    """Return random weights whose free decoding never stops early nor opens a block."""
    with torch.device('meta'):
        model = Transformer(config).to(dtype)
    model = model.to_empty(device=device).eval().requires_grad_(False)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if name.endswith(('norm.weight', 'layernorm.weight')):
            parameter.fill_(1)
        else:
            parameter.normal_(std=0.02)
    vocabulary = config.vocabulary
    for token in (vocabulary.separator, vocabulary.boa, vocabulary.eoa, vocabulary.boi,
                  vocabulary.eoi):
        model.lm_head.weight[token] = 0
    return model


def text_ids(vocabulary: Vocabulary, count: int) -> range:
    """Return the first `count` ids in a row that stand for text and nothing else."""
    return next(ids for ids in (range(first, first + count) for first in range(vocabulary.size))
                if vocabulary.first_that_is_no_text(ids) is None)


def prompt_of(vocabulary: Vocabulary, size_px: int, num_images: int, seed: int = 0
              ) -> list[int]:
    """Return BOS, text, images of random codes, separator."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, vocabulary.num_codes, (num_images, size_px // 16, size_px // 16))
    images = [token for image in codes for token in image_block(image, vocabulary).tolist()]
    words = text_ids(vocabulary, NUM_WORDS)
    text = [vocabulary.bos, *rng.integers(words.start, words.stop, NUM_TEXT - 1).tolist()]
    return [*text, *images, vocabulary.separator]


def world_prompt_of(vocabulary: Vocabulary, size_px: int, seed: int = 0) -> list[int]:
    """Return BOS, text, one image of random codes, one action, separator."""
    prompt = prompt_of(vocabulary, size_px, 1, seed)
    bins = np.random.default_rng(seed).integers(0, vocabulary.num_bins, VALUES_PER_ACTION)
    action = action_block(bins + vocabulary.bin_start, vocabulary)
    return [*prompt[:-1], *action.tolist(), vocabulary.separator]
