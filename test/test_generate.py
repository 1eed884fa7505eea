# SPDX-License-Identifier: Apache-2.0
"""Parallel decoding equals sequential decoding, on every path and at every shape."""

import numpy as np
import pytest
from tiny_models import VOCABULARY, action_prompt, tiny_model
import torch

from worldvla_ros.errors import InferenceError, TokenError
from worldvla_ros.model.attention_mask import action_chunk_mask
from worldvla_ros.model.generate import (
    chunk_capacity,
    decode_chunk,
    decode_chunk_in_order,
    generate_chunk,
    generate_free,
    prefill,
)
from worldvla_ros.model.transformer import Transformer

# (actions, images, grid): with 100 prompts each, every K and M and both shapes of image occur.
SHAPES = [(1, 1, (1, 1)), (1, 4, (1, 2)), (5, 1, (2, 1)), (5, 2, (1, 1)), (5, 2, (1, 2)),
          (5, 4, (1, 1)), (10, 1, (1, 1)), (10, 2, (2, 1)), (10, 2, (1, 1)), (10, 4, (1, 1)),
          (1, 2, (2, 2))]
PROMPTS_PER_SHAPE = 100


def sequential_chunks(model: Transformer, prompts: torch.Tensor, num_actions: int,
                      chunk_mask: bool = True) -> torch.Tensor:
    """Return [B, K, 7]: one token after the other, whole forwards under the published mask."""
    ids = prompts
    bins = slice(VOCABULARY.bins.start, VOCABULARY.bins.stop)
    chosen = []

    def append(tokens):
        return torch.cat((ids, torch.as_tensor(tokens).expand(len(ids))[:, None]), dim=1)

    for _ in range(num_actions):
        ids = append(VOCABULARY.boa)
        for _ in range(7):
            # equal layout in the whole batch
            mask = action_chunk_mask(ids[0], VOCABULARY) if chunk_mask else None
            hidden = model.rows(ids, mask=mask, keep_last=1)[:, -1]
            chosen.append(model.logits(hidden)[:, bins].argmax(-1) + VOCABULARY.bin_start)
            ids = append(chosen[-1])
        ids = append(VOCABULARY.eoa)
    return torch.stack(chosen, dim=1).view(len(ids), num_actions, 7)


@pytest.mark.parametrize(('num_actions', 'num_images', 'grid'), SHAPES)
@torch.inference_mode()
def test_parallel_decoding_equals_sequential(num_actions, num_images, grid):
    rng = np.random.default_rng(num_actions * 100 + num_images * 10 + grid[1])
    model = tiny_model(seed=num_actions + num_images)
    prompts = [action_prompt(rng, num_images, grid) for _ in range(PROMPTS_PER_SHAPE)]
    expected = sequential_chunks(model, torch.from_numpy(np.stack(prompts)), num_actions)
    assert len(expected.unique()) > 20, 'the model says the same everywhere: no evidence'
    for prompt, chunk in zip(prompts, expected, strict=True):
        torch.testing.assert_close(generate_chunk(model, prompt, num_actions), chunk,
                                   rtol=0, atol=0)


@torch.inference_mode()
def test_decoding_in_order_shows_each_action_those_before_it():
    rng = np.random.default_rng(11)
    model = tiny_model(seed=7)
    cache = model.new_cache(chunk_capacity(len(action_prompt(rng, 2, (1, 1))), 5))
    differ = 0
    for _ in range(20):
        prompt = action_prompt(rng, 2, (1, 1))
        expected = sequential_chunks(model, torch.from_numpy(prompt)[None], 5, chunk_mask=False)[0]
        for _ in range(2):  # the second time the prompt is in the cache
            decoded = decode_chunk_in_order(model, prompt, 5, cache=cache)
            torch.testing.assert_close(decoded.token_ids, expected, rtol=0, atol=0)
        assert decoded.rows == 1 + 5 * 7 + 4 * 2 - 1  # BOA, values but the last, EOA and BOA
        parallel = decode_chunk(model, prompt, 5)
        torch.testing.assert_close(decoded.log_probs[0], parallel.log_probs[0])
        differ += bool((decoded.token_ids[1:] != parallel.token_ids[1:]).any())
    assert differ > 5, 'whether earlier actions are seen makes no difference: no evidence'


@pytest.mark.parametrize('num_images', [1, 2, 4])
def test_newest_frame_path_equals_one_shot(num_images):
    rng = np.random.default_rng(num_images)
    model = tiny_model(seed=3)
    cache = model.new_cache(256)
    for _ in range(40):
        prompt = action_prompt(rng, num_images, (1, 2))
        image_length = 2 * (2 * 2 + 1) + 4
        prefix = prompt[:-1 - image_length]
        assert prefill(model, prefix, cache) <= len(prefix)
        decoded = decode_chunk(model, prompt, 5, cache=cache)
        assert decoded.rows == image_length + 1 + 5 + 6 * 5  # one image, SEP, BOAs; six passes
        torch.testing.assert_close(decoded.token_ids, generate_chunk(model, prompt, 5),
                                   rtol=0, atol=0)


def test_a_wrong_guess_of_the_prefix_changes_nothing():
    rng = np.random.default_rng(7)
    model = tiny_model(seed=4)
    cache = model.new_cache(256)
    for _ in range(30):
        prompt, other = action_prompt(rng, 2, (1, 1)), action_prompt(rng, 2, (1, 1))
        mixed = np.concatenate((prompt[:rng.integers(1, len(prompt))], other))
        prefill(model, mixed[:len(prompt)], cache)
        torch.testing.assert_close(generate_chunk(model, prompt, 5, cache=cache),
                                   generate_chunk(model, prompt, 5), rtol=0, atol=0)


def test_text_is_computed_once_while_the_instruction_stays():
    rng = np.random.default_rng(8)
    model = tiny_model()
    cache = model.new_cache(256)
    first = action_prompt(rng, 2, (1, 1))
    second = np.concatenate((first[:7], action_prompt(rng, 2, (1, 1))[7:]))  # BOS, 6 text tokens
    assert decode_chunk(model, first, 5, cache=cache).rows == len(first) + 5 * 7
    rows = decode_chunk(model, second, 5, cache=cache).rows
    assert rows <= len(second) - 7 + 5 * 7


def test_a_repeated_prompt_computes_only_the_separator_and_the_actions():
    model = tiny_model()
    prompt = action_prompt(np.random.default_rng(9), 2, (1, 1))
    cache = model.new_cache(256)
    first = decode_chunk(model, prompt, 5, cache=cache)
    again = decode_chunk(model, prompt, 5, cache=cache)
    assert again.rows == 1 + 5 * 7
    torch.testing.assert_close(again.token_ids, first.token_ids)


def test_a_chunk_takes_seven_passes(monkeypatch):
    model = tiny_model()
    passes = []
    rows = model.rows
    monkeypatch.setattr(model, 'rows', lambda *a, **k: passes.append(a) or rows(*a, **k))
    generate_chunk(model, action_prompt(np.random.default_rng(0), 2, (1, 1)), 10)
    assert len(passes) == 7


def test_log_probabilities_and_entropy_are_those_of_the_action_bins():
    model = tiny_model()
    prompt = action_prompt(np.random.default_rng(1), 1, (1, 1))
    decoded = decode_chunk(model, prompt, 2)
    ids = torch.tensor([*prompt, VOCABULARY.boa])[None]
    with torch.inference_mode():
        logits = model(ids)[0, -1][VOCABULARY.bins.start:VOCABULARY.bins.stop]
    distribution = torch.distributions.Categorical(logits=logits)
    torch.testing.assert_close(decoded.entropy[0, 0], distribution.entropy())
    torch.testing.assert_close(decoded.log_probs[0, 0],
                               distribution.log_prob(logits.argmax()))
    assert (decoded.margin >= 0).all()


def test_certificate_counts_every_token_that_the_free_model_would_not_say():
    model = tiny_model(seed=5)
    prompt = action_prompt(np.random.default_rng(2), 1, (1, 1))
    decoded = decode_chunk(model, prompt, 3, certify=True)
    forced = [*prompt]
    for action in decoded.token_ids.tolist():
        forced += [VOCABULARY.boa, *action, VOCABULARY.eoa]
    forced.append(VOCABULARY.separator)
    ids = torch.tensor(forced)
    with torch.inference_mode():
        free = model(ids[None], action_chunk_mask(ids, VOCABULARY)[None])[0].argmax(-1)
    wanted = int((free[len(prompt) - 1:-1] != ids[len(prompt):]).sum())
    assert int(decoded.violations) == wanted
    assert wanted > 0, 'a random model keeps no grammar; the count must see that'


def test_free_decoding_equals_whole_forwards():
    rng = np.random.default_rng(3)
    for seed in range(5):
        model = tiny_model(seed=seed)
        prompt = action_prompt(rng, 1, (1, 1))
        ids = torch.from_numpy(prompt)
        for _ in range(12):
            with torch.inference_mode():
                ids = torch.cat((ids, model(ids[None])[0, -1].argmax(-1, keepdim=True)))
            if ids[-1] == VOCABULARY.separator:
                break
        free = generate_free(model, prompt, 12, attention='causal')
        torch.testing.assert_close(free, ids[len(prompt):])


def test_bfloat16_differs_from_float32_only_at_small_margins():
    rng = np.random.default_rng(5)
    exact, coarse = tiny_model(seed=6), tiny_model(seed=6, dtype=torch.bfloat16)
    for _ in range(50):
        prompt = action_prompt(rng, 2, (1, 1))
        chunk, other = decode_chunk(exact, prompt, 5), decode_chunk(coarse, prompt, 5)
        for action in range(5):
            flips = (chunk.token_ids[action] != other.token_ids[action]).nonzero()
            # After a flip the two continue from different tokens, so only the first one counts.
            if len(flips):
                assert chunk.margin[action, flips[0, 0]] < 0.15


@pytest.mark.parametrize('prompt', [[], [[1, 2]], [0.5, 1.0], [-1, 2], [VOCABULARY.size]])
def test_unusable_prompts_are_refused(prompt):
    with pytest.raises(TokenError, match='prompt ids'):
        generate_chunk(tiny_model(), np.array(prompt), 5)


def test_impossible_requests_are_refused():
    model, prompt = tiny_model(), action_prompt(np.random.default_rng(6), 1, (1, 1))
    with pytest.raises(TokenError, match='at least one action'):
        generate_chunk(model, prompt, 0)
    with pytest.raises(TokenError, match='attention'):
        generate_free(model, prompt, 5, attention='none')
    with pytest.raises(InferenceError, match='KV cache has 20'):
        generate_chunk(model, prompt, 5, cache=model.new_cache(20))


def test_chunk_capacity_holds_a_certified_chunk():
    model, prompt = tiny_model(), action_prompt(np.random.default_rng(6), 1, (1, 1))
    cache = model.new_cache(chunk_capacity(len(prompt), 3))
    decode_chunk(model, prompt, 3, cache=cache, certify=True)
    assert cache.length == len(prompt)
