# SPDX-License-Identifier: Apache-2.0
"""Bins chosen from probabilities, alike on every path that decodes a chunk."""

import numpy as np
import pytest
from tiny_models import action_prompt, tiny_model
import torch

from worldvla_ros.model.decoded import choose_bins, token_statistics
from worldvla_ros.model.engine.chunk import StaticChunkDecoder
from worldvla_ros.model.generate import decode_chunk, decode_chunk_in_order


def test_the_mean_of_two_directions_moves_carefully_and_the_gripper_never_halves():
    probabilities = torch.full((1, 256), 1e-9)
    probabilities[0, [20, 220]] = torch.tensor([0.55, 0.45])
    logits = probabilities.log()
    assert choose_bins(logits, 0).tolist() == [20]
    assert choose_bins(logits, 0, 'mean').tolist() == [110]
    assert choose_bins(logits, 6, 'mean').tolist() == [20]


def test_a_certain_network_gives_the_same_bin_either_way():
    logits = torch.zeros(4, 256)
    logits[torch.arange(4), torch.tensor([0, 7, 200, 255])] = 60.0
    for value in range(7):
        assert torch.equal(choose_bins(logits, value, 'mean'), choose_bins(logits, value))


@pytest.mark.parametrize('choice', ['greedy', 'mean'])
def test_a_network_that_computed_nan_still_names_bins(choice):
    """They go into the embedding, where a GPU has no way to refuse them."""
    logits = torch.full((2, 256), torch.nan)
    bins = choose_bins(logits, 0, choice)
    assert (bins >= 0).all() and (bins < 256).all()
    assert token_statistics(logits, bins)['entropy'].isnan().all()


def test_statistics_are_of_the_bin_that_was_chosen():
    logits = torch.randn(3, 256)
    chosen = torch.tensor([5, 6, 7])
    log_probs = token_statistics(logits, chosen)['log_probs']
    assert torch.equal(log_probs, logits.log_softmax(-1)[torch.arange(3), chosen])
    assert torch.equal(token_statistics(logits, logits.argmax(-1))['log_probs'],
                       token_statistics(logits)['log_probs'])


@pytest.mark.parametrize('choice', ['greedy', 'mean'])
def test_every_decoder_chooses_alike(choice):
    """One action sees the prompt alone, so all three ways compute the same; the choices differ."""
    rng, model = np.random.default_rng(0), tiny_model(seed=5)
    engine = StaticChunkDecoder(model, 1, prompt_buckets=[60], newest_rows=15, choice=choice)
    differs = False
    for _ in range(4):
        prompt = action_prompt(rng, 2, (1, 2))
        plain = decode_chunk(model, prompt, 1, choice=choice)
        in_order = decode_chunk_in_order(model, prompt, 1, choice=choice)
        assert torch.equal(plain.token_ids, in_order.token_ids)
        assert torch.equal(plain.token_ids, engine.decode(prompt).token_ids)
        differs |= not torch.equal(plain.token_ids, decode_chunk(model, prompt, 1).token_ids)
    assert differs == (choice == 'mean')
