# SPDX-License-Identifier: Apache-2.0
"""Imagined frames in fixed shapes equal those of plain decoding; here the engine runs eagerly."""

import numpy as np
import pytest
from tiny_models import random_image, tiny_model, world_prompt
import torch

from worldvla_ros.errors import InferenceError
from worldvla_ros.model.engine.image import StaticImageRows
from worldvla_ros.model.image_decoding import (
    EagerImageRows,
    decode_image,
    decode_image_rows,
    image_capacity,
    image_rows,
)

GRID = (3, 2)
PROMPT = 51  # tokens of a world prompt of this grid


def rows_of(model, window):
    capacity = image_capacity(PROMPT, GRID)
    return StaticImageRows(model, PROMPT + 3, capacity - PROMPT - 3, window)


@pytest.mark.parametrize(('window', 'max_window'), [(16, 16), (32, 7), (16, 1), (64, 64)])
def test_images_equal_those_of_plain_decoding(window, max_window):
    rng = np.random.default_rng(window)
    model = tiny_model(seed=window, qk_norm_rows=4)
    rows = rows_of(model, window)
    for _ in range(3):
        prompt = world_prompt(rng, GRID)
        assert len(prompt) == PROMPT
        plain = decode_image(model, prompt, GRID)
        for draft in (None, plain.codes.numpy(), random_image(rng, GRID)):
            image = decode_image_rows(rows, prompt.tolist(), GRID, draft=draft,
                                      max_window=max_window)
            torch.testing.assert_close(image.codes, plain.codes, rtol=0, atol=0)
            torch.testing.assert_close(image.log_probs, plain.log_probs, rtol=1e-3, atol=1e-4)
        assert image.passes <= plain.passes
    assert rows.captures == 2


def test_a_pass_is_as_wide_as_the_shape_allows():
    """In a fixed shape a short window saves nothing, so the window does not shrink."""
    model = tiny_model(seed=3)
    prompt = world_prompt(np.random.default_rng(3), GRID)
    rows, fed = rows_of(model, 16), []
    extend = rows.extend
    rows.extend = lambda tokens, kept: fed.append(len(tokens)) or extend(tokens, kept)
    codes = decode_image(model, prompt, GRID).codes.numpy()
    decode_image_rows(rows, prompt.tolist(), GRID, draft=(codes + 1) % 64, max_window=16)
    assert min(fed[:2]) >= 15


def test_requests_beyond_the_shapes_are_refused():
    rows = rows_of(tiny_model(), 16)
    with pytest.raises(InferenceError, match=f'prompts of {PROMPT + 3} tokens.*of {PROMPT + 4} t'):
        rows.start([0] * (PROMPT + 4), [])
    with pytest.raises(InferenceError, match='prompt of 999'):
        rows.start([0] * 999, [])
    with pytest.raises(InferenceError, match='16 drafted'):
        rows.start([0] * 10, [0] * 16)
    with pytest.raises(InferenceError, match='17 tokens'):
        rows.extend([0] * 17, 0)


def test_a_cpu_runs_plain_rows_and_computes_the_text_once():
    model = tiny_model()
    rows = image_rows(model, PROMPT, GRID)
    assert isinstance(rows, EagerImageRows)
    prompt, fed = world_prompt(np.random.default_rng(4), GRID).tolist(), []
    expected = decode_image(model, prompt, GRID).codes
    plain = model.rows
    model.rows = lambda ids, **options: fed.append(ids.shape[1]) or plain(ids, **options)
    for _ in range(2):
        torch.testing.assert_close(decode_image_rows(rows, prompt, GRID).codes, expected)
    assert fed[0] == PROMPT + 3
    assert fed[24] == 1, 'the prompt was there already'
