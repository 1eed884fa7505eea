# SPDX-License-Identifier: Apache-2.0
"""The engine of fixed shapes gives the chunks of plain decoding; here it runs eagerly."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
from tiny_models import VOCABULARY, action_prompt, tiny_model
import torch
from torch._dynamo.testing import CompileCounter

from worldvla_ros.errors import InferenceError, TokenError
from worldvla_ros.model.engine.chunk import StaticChunkDecoder
from worldvla_ros.model.engine.graphs import Graphs
from worldvla_ros.model.generate import decode_chunk, generate_chunk
from worldvla_ros.model.transformer import Transformer

IMAGE = 14  # tokens of one image of 1 x 2 blocks: 2 rows of 4 codes and row ends, and 4 more
BUCKETS = (30, 60, 90)


def engine(model, num_actions=5, **options):
    return StaticChunkDecoder(model, num_actions, prompt_buckets=BUCKETS, newest_rows=IMAGE + 1,
                              **options)


def prompts(rng, count=6):
    """Return prompts of one to four images with short and long texts, so of all buckets."""
    return [action_prompt(rng, 1 + i % 4, (1, 2), num_text=int(rng.integers(3, 24)))
            for i in range(count)]


def assert_equal(decoded, expected):
    torch.testing.assert_close(decoded.token_ids, expected.token_ids, rtol=0, atol=0)
    for name in ('log_probs', 'entropy', 'margin'):
        torch.testing.assert_close(getattr(decoded, name), getattr(expected, name),
                                   rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('qk_norm_rows', [1, 2, 4])
@pytest.mark.parametrize('num_actions', [1, 5, 10])
def test_chunks_equal_those_of_plain_decoding(num_actions, qk_norm_rows):
    rng = np.random.default_rng(num_actions + qk_norm_rows)
    model = tiny_model(seed=num_actions, qk_norm_rows=qk_norm_rows)
    decoder = engine(model, num_actions)
    for prompt in prompts(rng, 8):
        assert_equal(decoder.decode(prompt), decode_chunk(model, prompt, num_actions))


def test_tied_embeddings_and_other_widths_are_served():
    rng = np.random.default_rng(1)
    config = replace(tiny_model(hidden=48, heads=3, layers=3).config, tie_word_embeddings=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = Transformer(config).eval()
        torch.nn.init.normal_(model.lm_head.weight, std=0.3)
    decoder = engine(model)
    for prompt in prompts(rng):
        assert_equal(decoder.decode(prompt), decode_chunk(model, prompt, 5))


def test_the_newest_frame_path_computes_one_image_and_the_actions():
    rng = np.random.default_rng(2)
    model = tiny_model(seed=3)
    decoder, rows = engine(model), 16 + 7 * 5  # an image and the separator, padded to 16 rows
    for prompt in prompts(rng, 8):
        prefix = prompt[:-1 - IMAGE]
        decoder.prefill(prefix)
        assert decoder.prefill(prefix) == 0, 'it is there already'
        decoded = decoder.decode(prompt)
        assert decoded.rows == rows
        assert_equal(decoded, decode_chunk(model, prompt, 5))


def test_prompts_of_which_more_is_there_than_the_shape_leaves_out_are_served():
    """The rows of the newest-frame path begin where the shape says, however much is cached."""
    rng = np.random.default_rng(15)
    model = tiny_model(seed=15)
    decoder = engine(model, 3)
    base = action_prompt(rng, 4, (1, 2))
    for _ in range(150):
        prompt = np.concatenate((base[:rng.integers(0, len(base))], base[-1:]))
        decoder.prefill(base[:rng.integers(1, len(base) + 1)])
        assert_equal(decoder.decode(prompt), decode_chunk(model, prompt, 3))


def test_a_wrong_guess_of_the_prefix_changes_nothing():
    rng = np.random.default_rng(7)
    model = tiny_model(seed=4)
    decoder = engine(model)
    for _ in range(30):
        prompt, other = (action_prompt(rng, int(rng.integers(1, 4)), (1, 2)) for _ in range(2))
        mixed = np.concatenate((prompt[:rng.integers(1, len(prompt))], other))
        decoder.prefill(mixed[:len(prompt)])
        torch.testing.assert_close(decoder.decode(prompt).token_ids,
                                   generate_chunk(model, prompt, 5), rtol=0, atol=0)


def test_nothing_is_captured_after_the_warm_up():
    rng = np.random.default_rng(5)
    decoder = engine(tiny_model(seed=5))
    decoder.warm_up()
    captures = decoder.captures
    # A prefix and a whole prompt per bucket; the newest frame where it is less than a bucket.
    assert captures == 3 * len(BUCKETS)
    for prompt in prompts(rng, 12):
        decoder.decode(prompt)
        decoder.prefill(prompt[:-1 - IMAGE])
        decoder.decode(np.concatenate((prompt[:-2], prompt[-1:])))
    assert decoder.captures == captures


@pytest.fixture
def as_replayed(monkeypatch):
    """Let graphs return the same tensors at each run of a key, as they do on a GPU."""
    eager, buffers = Graphs.run, {}

    def run(self, key, function):
        new = eager(self, key, function)
        for buffer, output in zip(buffers.setdefault(key, new), new, strict=True):
            buffer.copy_(output)
        return buffers[key]
    monkeypatch.setattr(Graphs, 'run', run)


def test_a_result_survives_the_next_chunk(as_replayed):
    rng = np.random.default_rng(6)
    decoder = engine(tiny_model(seed=6))
    first = decoder.decode(action_prompt(rng, 1, (1, 2)))
    kept = deepcopy(first)
    for _ in range(3):
        decoder.decode(action_prompt(rng, 1, (1, 2)))
    assert_equal(first, kept)


@pytest.mark.parametrize('call', ['prefill', 'decode'])
def test_columns_that_a_failed_run_left_behind_are_not_trusted(monkeypatch, call):
    rng = np.random.default_rng(11)
    model = tiny_model(seed=11)
    decoder, fresh = engine(model), engine(model)
    prompt, other = (action_prompt(rng, 2, (1, 2)) for _ in range(2))
    decoder.prefill(prompt[:-1 - IMAGE])

    def fails(self, key, function):
        function()
        raise torch.cuda.OutOfMemoryError
    with monkeypatch.context() as patch:
        patch.setattr(Graphs, 'run', fails)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            getattr(decoder, call)(other)
    assert_equal(decoder.decode(prompt), fresh.decode(prompt))


def test_nan_in_the_cache_is_forgotten():
    rng = np.random.default_rng(12)
    model = tiny_model(seed=12)
    decoder = engine(model)
    prompts = [action_prompt(rng, count, (1, 2)) for count in (4, 2)]
    with torch.no_grad():
        row = model.model.embed_tokens.weight[VOCABULARY.separator]
        whole, row[:] = row.clone(), torch.nan
        assert decoder.decode(prompts[0]).entropy.isnan().any()
        row[:] = whole
    decoder.forget()
    for prompt in prompts[::-1]:
        assert_equal(decoder.decode(prompt), decode_chunk(model, prompt, 5))


def test_the_model_shares_the_engines_weights_and_says_the_same():
    rng = np.random.default_rng(8)
    model = tiny_model(seed=8)
    prompt = action_prompt(rng, 2, (1, 2))
    before = decode_chunk(model, prompt, 5)
    decoder = engine(model)
    assert_equal(decode_chunk(model, prompt, 5), before)
    layer = model.model.layers[0]
    storages = {linear.weight.untyped_storage().data_ptr() for linear in (
        layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)}
    assert len(storages) == 1, 'three copies of a 7B model would not fit beside one'
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert_equal(decoder.decode(prompt), before)
    other = engine(model)  # as policy and world model have on one checkpoint
    assert other._network._layers[0].qkv.weight.untyped_storage().data_ptr() in storages
    assert_equal(other.decode(prompt), before)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_short_formats_differ_from_float32_only_at_small_margins(dtype):
    rng = np.random.default_rng(9)
    exact, coarse = tiny_model(seed=6), engine(tiny_model(seed=6, dtype=dtype))
    for prompt in prompts(rng, 20):
        chunk, other = decode_chunk(exact, prompt, 5), coarse.decode(prompt)
        for action in range(5):
            flips = (chunk.token_ids[action] != other.token_ids[action]).nonzero()
            if len(flips):
                assert chunk.margin[action, flips[0, 0]] < 0.15


def test_unusable_prompts_are_refused():
    with pytest.raises(TokenError, match='at least one action'):
        engine(tiny_model(), 0)
    decoder = engine(tiny_model())
    with pytest.raises(TokenError, match='prompt ids'):
        decoder.decode([VOCABULARY.size])
    with pytest.raises(InferenceError, match=r'has 97 tokens.* built for 96'):
        decoder.decode([1] * 97)


def test_one_compilation_serves_all_layers():
    """With a stand-in for the compiler: no graph break, and no new graph per layer or prompt."""
    counter = CompileCounter()
    model = tiny_model(seed=7, layers=5)
    decoder = StaticChunkDecoder(model, 5, prompt_buckets=[64], newest_rows=15)
    network = decoder._network
    for name in ('_project', '_finish'):
        setattr(network, name, torch.compile(getattr(network, name), backend=counter,
                                             dynamic=False, fullgraph=True))
    rng = np.random.default_rng(10)
    for prompt in (action_prompt(rng, 2, (1, 2)), action_prompt(rng, 3, (1, 2))):
        assert_equal(decoder.decode(prompt), decode_chunk(model, prompt, 5))
    assert counter.frame_count == 4  # both functions for prompt rows and for action rows
