# SPDX-License-Identifier: Apache-2.0
"""Weights in 8 bits: how far they are from those in full, and what they are on the way."""

import numpy as np
import pytest
from tiny_models import action_prompt, tiny_model
import torch

from worldvla_ros.model.engine.chunk import StaticChunkDecoder
from worldvla_ros.model.engine.linear import DenseLinear, Fp8Linear
from worldvla_ros.model.generate import decode_chunk


def test_dense_weights_are_used_as_they_are():
    torch.manual_seed(0)
    weight, x = torch.randn(12, 8), torch.randn(2, 3, 8)
    torch.testing.assert_close(DenseLinear(weight)(x), x @ weight.t())


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_eight_bits_keep_two_digits(dtype):
    torch.manual_seed(0)
    weight, x = torch.randn(64, 128, dtype=dtype), torch.randn(2, 5, 128, dtype=dtype)
    exact = x.float() @ weight.float().t()
    out = Fp8Linear(weight)(x)
    assert (out.shape, out.dtype) == ((2, 5, 64), dtype)
    error = float((out.float() - exact).norm() / exact.norm())
    assert 0.005 < error < 0.05, 'e4m3 has three bits after the point'


def test_values_that_eight_bits_hold_are_multiplied_exactly():
    """Each channel and each row has its own scale, so powers of two apart cost nothing."""
    weight = torch.tensor([[1.0, -448.0], [2.0 ** -20, 2.0 ** -21]])
    x = torch.tensor([[2.0 ** 30, 2.0 ** 29], [-3.0, 7.0]])
    torch.testing.assert_close(Fp8Linear(weight)(x), x @ weight.t(), rtol=1e-6, atol=0)


def test_rows_and_channels_of_zeros_stay_zero():
    out = Fp8Linear(torch.zeros(4, 8))(torch.zeros(1, 2, 8))
    assert (out == 0).all()


def test_chunks_in_eight_bits_flip_rarely_and_where_the_choice_was_close():
    rng = np.random.default_rng(1)
    model = tiny_model(seed=1)
    decoder = StaticChunkDecoder(model, 5, prompt_buckets=[64], newest_rows=15, weights='fp8')
    margins, actions = [], 0
    for _ in range(12):
        prompt = action_prompt(rng, 2, (1, 2))
        exact, coarse = decode_chunk(model, prompt, 5), decoder.decode(prompt)
        for action in range(5):
            actions += 1
            flips = (exact.token_ids[action] != coarse.token_ids[action]).nonzero()
            if len(flips):  # after a flip the two continue from different tokens
                margins.append(float(exact.margin[action, flips[0, 0]]))
    assert margins, 'not one flip: these are not 8 bits'
    assert len(margins) < actions
    assert max(margins) < 1.0
