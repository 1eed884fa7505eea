# SPDX-License-Identifier: Apache-2.0
"""Our decoder equals transformers' own Chameleon, and its options do what they say."""

import pytest
from tiny_models import VOCABULARY, tiny_model
import torch

TOLERANCE = 2e-5


def chameleon_with_weights_of(model):
    transformers = pytest.importorskip('transformers')
    config = model.config
    oracle = transformers.ChameleonModel(transformers.ChameleonConfig(
        vocab_size=config.vocabulary.size, hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size, num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads, num_key_value_heads=config.num_heads,
        vq_config={'embed_dim': 8, 'num_embeddings': 16, 'latent_channels': 8,
                   'base_channels': 32, 'channel_multiplier': [1], 'num_res_blocks': 1},
        vocabulary_map={'<image>': 3, 'IMGIMGAZ': 4}))
    state = {}
    for name, value in model.state_dict().items():
        if '_norm.' in name and 'self_attn' in name:
            value = value.repeat_interleave(config.num_heads // len(value), 0)
        state[name.removeprefix('model.')] = value
    missing, unexpected = oracle.load_state_dict(state, strict=False)
    assert unexpected == ['lm_head.weight']
    assert all(name.startswith('vqmodel.') for name in missing)
    return oracle.eval()


@pytest.mark.parametrize('qk_norm_rows', [1, 2, 4])
@torch.inference_mode()
def test_hidden_states_equal_those_of_transformers(qk_norm_rows):
    model = tiny_model(seed=qk_norm_rows, layers=3, qk_norm_rows=qk_norm_rows)
    oracle = chameleon_with_weights_of(model)
    ids = torch.randint(4, VOCABULARY.size, (2, 50), generator=torch.manual_seed(0))
    ids[ids == 3] = 4
    expected = oracle(input_ids=ids).last_hidden_state
    torch.testing.assert_close(model.rows(ids), expected, atol=TOLERANCE, rtol=0)


@torch.inference_mode()
def test_an_explicit_causal_mask_equals_none():
    model = tiny_model()
    ids = torch.arange(2 * 20).view(2, 20)
    mask = torch.ones(2, 20, 20, dtype=torch.bool).tril()
    torch.testing.assert_close(model(ids, mask), model(ids))


@torch.inference_mode()
def test_each_sequence_of_a_batch_has_its_own_mask():
    model = tiny_model()
    ids = torch.arange(20).expand(2, 20)
    masks = torch.ones(2, 20, 20, dtype=torch.bool).tril()
    masks[1, 15:, 3:9] = False
    logits = model(ids, masks)
    torch.testing.assert_close(logits[0], model(ids[:1], masks[:1])[0])
    torch.testing.assert_close(logits[1], model(ids[:1], masks[1:])[0])
    assert (logits[0, 15:] != logits[1, 15:]).any()
    torch.testing.assert_close(logits[0, :15], logits[1, :15])


@torch.inference_mode()
def test_cached_passes_equal_one_pass():
    model = tiny_model(layers=3)
    ids = torch.randint(0, VOCABULARY.size, (1, 30), generator=torch.manual_seed(1))
    whole = model.rows(ids)
    cache = model.new_cache(30)
    parts, start = [], 0
    for length in (1, 12, 7, 10):
        end = start + length
        parts.append(model.rows(ids[:, start:end], cache=cache))
        start = end
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=TOLERANCE, rtol=0)


@torch.inference_mode()
def test_keep_last_gives_the_same_rows_and_fills_the_cache():
    model = tiny_model(layers=3)
    ids = torch.arange(15)[None]
    whole, cache = model.rows(ids), model.new_cache(15)
    for given in (None, torch.ones(15, 15, dtype=torch.bool).tril()):
        cache.keep_prefix([])
        torch.testing.assert_close(model.rows(ids, mask=given, cache=cache, keep_last=4),
                                   whole[:, -4:], atol=TOLERANCE, rtol=0)
        assert cache.length == 15
    assert model.rows(ids, keep_last=0).shape == (1, 0, model.config.hidden_size)


@pytest.mark.parametrize('keep_last', [None, 20, 12, 5, 0])
@torch.inference_mode()
def test_rows_at_the_start_attend_without_a_mask_as_they_do_with_one(keep_last):
    model = tiny_model(layers=3)
    ids = torch.arange(2 * 20).view(2, 20)
    mask = torch.ones(2, 20, 20, dtype=torch.bool).tril()
    mask[1, 10:, 9:12] = torch.eye(10, 3, dtype=torch.bool)
    mask[:, 8:] |= torch.eye(20, dtype=torch.bool)[8:]
    kept = 20 if keep_last is None else keep_last
    torch.testing.assert_close(
        model.rows(ids, mask=mask, keep_last=keep_last, causal_rows=8),
        model.rows(ids, mask=mask)[:, 20 - kept:], atol=TOLERANCE, rtol=0)


@torch.inference_mode()
def test_causal_rows_that_would_be_computed_wrongly_are_refused():
    model, ids = tiny_model(), torch.arange(20)[None]
    cache = model.new_cache(40)
    for options in ({'cache': cache}, {'keep_last': 13}, {'keep_last': 19}):
        with pytest.raises(ValueError, match='causal_rows=8'):
            model.rows(ids, mask=torch.ones(20, 20, dtype=torch.bool).tril(), causal_rows=8,
                       **options)
    assert cache.length == 0


@torch.inference_mode()
def test_allowed_logits_are_a_slice_of_all():
    model = tiny_model()
    hidden = model.rows(torch.arange(5)[None])
    logits = model.logits(hidden)
    assert logits.dtype == torch.float32
    bins = VOCABULARY.bins
    torch.testing.assert_close(model.logits(hidden, bins), logits[..., bins.start:bins.stop])


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_logits_are_float32_in_every_number_format(dtype):
    logits = tiny_model(dtype=dtype)(torch.arange(12)[None])
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, tiny_model()(torch.arange(12)[None]), atol=0.2, rtol=0.05)


def test_gradients_reach_every_parameter():
    model = tiny_model()
    model.train().logits(model.rows(torch.arange(12)[None])).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
