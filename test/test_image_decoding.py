# SPDX-License-Identifier: Apache-2.0
"""Imagined frames: the codes of one token at a time, with drafts and without."""

import numpy as np
import pytest
from tiny_models import VOCABULARY, random_image, tiny_model, world_prompt
import torch

from worldvla_ros.errors import InferenceError, TokenError
from worldvla_ros.model.image_decoding import decode_image, image_capacity
from worldvla_ros.tokens.sequence import parse_image_block


@pytest.mark.parametrize('grid', [(1, 1), (1, 2), (3, 2)])
@torch.inference_mode()
def test_image_decoding_equals_one_token_at_a_time(grid):
    rng = np.random.default_rng(4)
    height, width = grid
    codes_range = slice(VOCABULARY.codes.start, VOCABULARY.codes.stop)
    for seed in range(4):
        model = tiny_model(seed=seed)
        prompt = world_prompt(rng, grid)
        ids = [*prompt, VOCABULARY.boi, VOCABULARY.grid_token(height),
               VOCABULARY.grid_token(width)]
        for _ in range(2 * height):
            for _ in range(2 * width):
                logits = model(torch.tensor(ids)[None])[0, -1, codes_range]
                ids.append(int(logits.argmax()) + VOCABULARY.code_start)
            ids.append(VOCABULARY.new_line)
        ids.append(VOCABULARY.eoi)
        expected = parse_image_block(ids[len(prompt):], VOCABULARY)
        np.testing.assert_array_equal(decode_image(model, prompt, grid).codes, expected)


def test_an_image_takes_one_pass_per_code(monkeypatch):
    model = tiny_model()
    passes = []
    rows = model.rows
    monkeypatch.setattr(model, 'rows', lambda *a, **k: passes.append(a) or rows(*a, **k))
    decoded = decode_image(model, world_prompt(np.random.default_rng(0), (2, 3)), (2, 3))
    assert len(passes) == decoded.codes.numel() == 24
    assert decoded.entropy.shape == decoded.codes.shape == (4, 6)


def drafts(codes, rng):
    """Return drafts from right in every code to right in none, and what they have in common."""
    right = codes.numpy()
    halfway = np.where(rng.random(right.shape) < 0.5, right, random_image(rng, (3, 2)))
    return {'right': right, 'half right': halfway, 'wrong': (right + 1) % 64,
            'wrong at the end': np.where(np.arange(24).reshape(6, 4) < 20, right, 0)}


@pytest.mark.parametrize('max_window', [1, 2, 3, 5, 8, 64])
@pytest.mark.parametrize('qk_norm_rows', [1, 4])
def test_a_draft_never_changes_the_image(max_window, qk_norm_rows):
    rng = np.random.default_rng(max_window)
    for seed in range(2):
        model = tiny_model(seed=seed, qk_norm_rows=qk_norm_rows)
        prompt = world_prompt(rng, (3, 2))
        plain = decode_image(model, prompt, (3, 2))
        assert len(plain.codes.unique()) > 4, 'the model says the same everywhere: no evidence'
        for name, draft in drafts(plain.codes, rng).items():
            drafted = decode_image(model, prompt, (3, 2), draft=draft, max_window=max_window)
            torch.testing.assert_close(drafted.codes, plain.codes, rtol=0, atol=0)
            torch.testing.assert_close(drafted.log_probs, plain.log_probs)
            torch.testing.assert_close(drafted.entropy, plain.entropy)
            assert drafted.passes <= plain.passes == 24, name


@pytest.mark.parametrize(('max_window', 'passes'), [(1, 24), (6, 5), (64, 1)])
def test_a_right_draft_saves_passes(max_window, passes):
    """A window of six rows holds five codes and one row end, where a row has four codes."""
    model = tiny_model(seed=1)
    prompt = world_prompt(np.random.default_rng(1), (3, 2))
    codes = decode_image(model, prompt, (3, 2)).codes
    drafted = decode_image(model, prompt, (3, 2), draft=codes.numpy(), max_window=max_window)
    assert drafted.passes == passes


def test_the_window_shrinks_where_the_draft_is_wrong(monkeypatch):
    model = tiny_model(seed=2)
    prompt = world_prompt(np.random.default_rng(2), (3, 2))
    codes = decode_image(model, prompt, (3, 2)).codes.numpy()
    fed = []
    rows = model.rows
    monkeypatch.setattr(model, 'rows', lambda ids, **k: fed.append(ids.shape[1]) or rows(ids, **k))
    decode_image(model, prompt, (3, 2), draft=(codes + 1) % 64, max_window=16)
    assert max(fed) >= 16 and np.median(fed[1:]) <= 9, 'eight rows and a row end, but after luck'


def test_the_cache_keeps_the_prompt_for_the_next_frame():
    model = tiny_model(seed=3)
    prompt = world_prompt(np.random.default_rng(3), (2, 2))
    cache = model.new_cache(image_capacity(len(prompt), (2, 2)))
    first = decode_image(model, prompt, (2, 2), cache=cache, draft=np.zeros((4, 4), np.int64))
    assert cache.length == len(prompt)
    again = decode_image(model, prompt, (2, 2), cache=cache, draft=first.codes.numpy())
    torch.testing.assert_close(again.codes, first.codes, rtol=0, atol=0)


def test_bfloat16_drafts_differ_only_at_small_margins():
    """More rows in a pass mean another kernel, which may break a tie of rounded logits."""
    rng = np.random.default_rng(4)
    model, differing = tiny_model(seed=4, dtype=torch.bfloat16), 0
    for _ in range(20):
        prompt = world_prompt(rng, (2, 2))
        plain = decode_image(model, prompt, (2, 2))
        drafted = decode_image(model, prompt, (2, 2), draft=plain.codes.numpy())
        flips = (plain.codes != drafted.codes).reshape(-1).nonzero()
        if len(flips):
            differing += 1
            assert plain.margin.reshape(-1)[flips[0, 0]] < 0.15
    assert differing < 10


def test_unusable_drafts_are_refused():
    model, prompt = tiny_model(), world_prompt(np.random.default_rng(5), (1, 1))
    for draft in (np.zeros((4, 4)), np.full((2, 2), -1), np.full((2, 2), 64)):
        with pytest.raises(TokenError, match='draft'):
            decode_image(model, prompt, (1, 1), draft=draft)
    with pytest.raises(TokenError, match='max_window=0'):
        decode_image(model, prompt, (1, 1), max_window=0)
    with pytest.raises(InferenceError, match='KV cache has 12'):
        decode_image(model, prompt, (1, 1), cache=model.new_cache(12))
