# SPDX-License-Identifier: Apache-2.0
"""A guessed and corrected chunk is the one of plain decoding, in seven passes at most."""

import numpy as np
import pytest
from tiny_models import VOCABULARY, action_prompt, tiny_model
import torch

from worldvla_ros.model.engine.chunk import StaticChunkDecoder
from worldvla_ros.model.generate import decode_chunk
from worldvla_ros.tokens.action_tokenizer import BIN_CHOICES

BUCKETS = (20, 47, 90)
NEWEST = 16  # rows of the shorter path


def engine(model, num_actions=5, **options):
    return StaticChunkDecoder(model, num_actions, prompt_buckets=BUCKETS, newest_rows=NEWEST,
                              drafts=True, **options)


def assert_equal(decoded, expected):
    torch.testing.assert_close(decoded.token_ids, expected.token_ids, rtol=0, atol=0)
    for name in ('log_probs', 'entropy', 'margin'):
        torch.testing.assert_close(getattr(decoded, name), getattr(expected, name),
                                   rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('choice', BIN_CHOICES)
@pytest.mark.parametrize('num_actions', [1, 3, 10])
def test_chunks_equal_those_of_plain_decoding_whatever_was_decoded_before(num_actions, choice):
    rng = np.random.default_rng(num_actions)
    model = tiny_model(seed=num_actions)
    decoder, passes = engine(model, num_actions, choice=choice), []
    base = rng.integers(0, 40, 90)
    for _ in range(50):
        prompt = base[:rng.integers(1, 91)].copy()
        if rng.random() < 0.3:
            changed = rng.integers(0, len(prompt))
            prompt[changed:] = rng.integers(0, 40, len(prompt) - changed)
        if rng.random() < 0.4:
            decoder.prefill(base[:rng.integers(1, 91)])
        decoded = decoder.decode(prompt)
        assert_equal(decoded, decode_chunk(model, prompt, num_actions, choice=choice))
        of_prompt = decoded.rows - 7 * num_actions * decoded.passes
        assert of_prompt in (NEWEST, 32, 48, 96), 'a shape of the prompt, and all rows per pass'
        passes.append(decoded.passes)
    assert max(passes) <= 7


def test_a_prompt_that_comes_again_takes_two_passes_at_most():
    rng = np.random.default_rng(1)
    decoder = engine(tiny_model(seed=1))
    for _ in range(5):
        prompt = action_prompt(rng, 2, (1, 2))
        first, again = decoder.decode(prompt), decoder.decode(prompt)
        assert again.passes <= 2 < first.passes
        assert torch.equal(again.token_ids, first.token_ids)


def test_nothing_is_captured_after_the_warm_up_whether_drafts_are_right_or_not():
    rng = np.random.default_rng(2)
    decoder = engine(tiny_model(seed=2))
    decoder.warm_up()
    captures = decoder.captures
    # Per bucket a prefix, a whole prompt, a newest frame and a draft alone.
    assert captures == 4 * len(BUCKETS)
    for num_images in (1, 2, 3, 4) * 2:
        prompt = action_prompt(rng, num_images, (1, 2))
        decoder.prefill(prompt[:-15])
        for _ in range(2):
            decoder.decode(prompt)
    assert decoder.captures == captures


@pytest.mark.parametrize('choice', BIN_CHOICES)
def test_nan_is_told_and_forgotten_with_the_draft(choice):
    rng = np.random.default_rng(3)
    model = tiny_model(seed=3)
    decoder = engine(model, choice=choice)
    prompt = action_prompt(rng, 2, (1, 2))
    first = decoder.decode(prompt)
    with torch.no_grad():
        row = model.model.embed_tokens.weight[VOCABULARY.separator]
        whole, row[:] = row.clone(), torch.nan
        broken = decoder.decode(prompt)
        assert broken.entropy.isnan().all() and broken.passes <= 7
        row[:] = whole
    decoder.forget()
    decoded = decoder.decode(prompt)
    assert_equal(decoded, decode_chunk(model, prompt, 5, choice=choice))
    assert decoded.passes == first.passes, 'the draft is that of the start'


def test_short_formats_differ_from_float32_only_at_small_margins():
    rng = np.random.default_rng(4)
    exact, coarse = tiny_model(seed=6), engine(tiny_model(seed=6, dtype=torch.bfloat16))
    for _ in range(20):
        prompt = action_prompt(rng, 2, (1, 2))
        chunk, other = decode_chunk(exact, prompt, 5), coarse.decode(prompt)
        for action in range(5):
            flips = (chunk.token_ids[action] != other.token_ids[action]).nonzero()
            if len(flips):
                assert chunk.margin[action, flips[0, 0]] < 0.15
