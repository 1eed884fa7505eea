# SPDX-License-Identifier: Apache-2.0
"""The engine as CUDA graphs: the tokens of plain decoding, nothing captured or waited for twice.

    python -m pytest test/gpu
"""

import numpy as np
import pytest
from tiny_models import VOCABULARY, action_prompt, tiny_model, world_prompt
import torch

from worldvla_ros.errors import InferenceError
from worldvla_ros.model.chunk_decoder import EagerChunkDecoder, chunk_decoder
from worldvla_ros.model.engine.chunk import StaticChunkDecoder
from worldvla_ros.model.engine.image import StaticImageRows
from worldvla_ros.model.engine.linear import Fp8Linear
from worldvla_ros.model.generate import decode_chunk
from worldvla_ros.model.image_decoding import decode_image, decode_image_rows, image_rows
from worldvla_ros.tokens.action_tokenizer import BIN_CHOICES

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(),
                                                  reason='needs a CUDA device')]
IMAGE = 14


@pytest.fixture(autouse=True)
def full_precision():
    torch.backends.cuda.matmul.allow_tf32 = False


def engine(model, compiled=None, **options):
    return StaticChunkDecoder(model, 5, prompt_buckets=(32, 64), newest_rows=IMAGE + 1,
                              compiled=compiled, **options)


@pytest.mark.parametrize('compiled', [False, True])
@pytest.mark.parametrize('qk_norm_rows', [1, 4])
def test_replayed_chunks_equal_those_of_plain_decoding(compiled, qk_norm_rows):
    rng = np.random.default_rng(0)
    model, on_cpu = (tiny_model(qk_norm_rows=qk_norm_rows) for _ in range(2))
    decoder = engine(model.cuda(), compiled)
    for num_images in (1, 2, 1, 3, 2, 2):
        prompt = action_prompt(rng, num_images, (1, 2))
        expected = decode_chunk(on_cpu, prompt, 5)
        for ahead in (False, True):
            if ahead:
                decoder.prefill(action_prompt(rng, 2, (1, 2)))  # another prompt in between
                decoder.prefill(prompt[:-1 - IMAGE])
            decoded = decoder.decode(prompt)
            assert torch.equal(decoded.token_ids.cpu(), expected.token_ids)
            torch.testing.assert_close(decoded.entropy.cpu(), expected.entropy,
                                       rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('choice', BIN_CHOICES)
def test_replayed_drafts_give_the_chunks_of_plain_decoding(choice):
    rng = np.random.default_rng(9)
    model, on_cpu = tiny_model(seed=9).cuda(), tiny_model(seed=9)
    decoder = engine(model, choice=choice, drafts=True)
    decoder.warm_up()
    captures = decoder.captures
    for num_images in (1, 2, 1, 3, 2, 2):
        prompt = action_prompt(rng, num_images, (1, 2))
        expected = decode_chunk(on_cpu, prompt, 5, choice=choice)
        decoder.prefill(prompt[:-1 - IMAGE])
        for most in (7, 2):
            decoded = decoder.decode(prompt)
            assert torch.equal(decoded.token_ids.cpu(), expected.token_ids)
            assert decoded.passes <= most
    assert decoder.captures == captures


def test_nothing_is_captured_after_the_warm_up_and_the_host_never_waits():
    rng = np.random.default_rng(1)
    decoder = engine(tiny_model().cuda())
    decoder.warm_up()
    captures = decoder.captures
    torch.cuda.set_sync_debug_mode('error')
    try:
        for num_images in (1, 2, 3) * 4:
            prompt = action_prompt(rng, num_images, (1, 2))
            decoder.prefill(prompt[:-1 - IMAGE])
            decoder.decode(prompt)
            decoder.decode(prompt[:-1])
    finally:
        torch.cuda.set_sync_debug_mode('default')
    assert decoder.captures == captures


def test_a_result_survives_the_next_chunk():
    rng = np.random.default_rng(6)
    decoder = engine(tiny_model(seed=6).cuda())
    first = decoder.decode(action_prompt(rng, 1, (1, 2)))
    token_ids, entropy = first.token_ids.cpu(), first.entropy.cpu()
    for _ in range(3):
        decoder.decode(action_prompt(rng, 1, (1, 2)))
    assert torch.equal(first.token_ids.cpu(), token_ids)
    assert torch.equal(first.entropy.cpu(), entropy)


@pytest.mark.parametrize('choice', BIN_CHOICES)
def test_nan_is_named_in_a_replay_too_and_forgotten(choice):
    rng = np.random.default_rng(7)
    model, on_cpu = tiny_model(seed=7).cuda(), tiny_model(seed=7)
    decoder = engine(model, choice=choice)
    decoder.warm_up()
    prompt = action_prompt(rng, 2, (1, 2))
    with torch.no_grad():
        row = model.model.embed_tokens.weight[VOCABULARY.separator]
        whole, row[:] = row.clone(), torch.nan
        assert decoder.decode(prompt).entropy.isnan().any()
        row[:] = whole
    decoder.forget()
    assert torch.equal(decoder.decode(prompt).token_ids.cpu(),
                       decode_chunk(on_cpu, prompt, 5, choice=choice).token_ids)


def test_replays_allocate_nothing_that_stays():
    rng = np.random.default_rng(2)
    decoder = engine(tiny_model().cuda())
    decoder.warm_up()
    prompts = [action_prompt(rng, 2, (1, 2)) for _ in range(20)]
    decoder.decode(prompts[0])
    before = torch.cuda.memory_allocated()
    for prompt in prompts:
        decoder.decode(prompt)
    assert torch.cuda.memory_allocated() == before


@pytest.mark.parametrize('compiled', [False, True])
def test_replayed_frames_equal_those_of_plain_decoding(compiled):
    rng = np.random.default_rng(3)
    on_cpu, model = tiny_model(seed=3), tiny_model(seed=3).cuda()
    prompt = world_prompt(rng, (3, 2)).tolist()
    plain = decode_image(on_cpu, prompt, (3, 2))
    rows = StaticImageRows(model, len(prompt) + 3, 30, 16, compiled=compiled)
    for draft in (None, plain.codes.numpy(), (plain.codes.numpy() + 1) % 64):
        image = decode_image_rows(rows, prompt, (3, 2), draft=draft, max_window=16)
        assert torch.equal(image.codes.cpu(), plain.codes)
    assert rows.captures == 2


def test_the_engine_is_chosen_on_a_gpu():
    model = tiny_model().cuda()
    options = {'prompt_lengths': (32, 64), 'newest_rows': IMAGE + 1}
    assert isinstance(chunk_decoder(model, 5, **options), StaticChunkDecoder)
    assert isinstance(chunk_decoder(model, 5, **options, chunk_mask=False), EagerChunkDecoder)
    assert isinstance(image_rows(model, 51, (3, 2)), StaticImageRows)
    with pytest.raises(InferenceError, match='action-chunk mask'):
        chunk_decoder(model, 5, **options, chunk_mask=False, weights='fp8')


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='needs two CUDA devices')
def test_a_second_gpu_serves_while_the_first_is_the_current_one():
    model, on_cpu = tiny_model(seed=8), tiny_model(seed=8)
    decoder = engine(model.to('cuda:1'))
    for num_images in (1, 2, 2):
        prompt = action_prompt(np.random.default_rng(num_images), num_images, (1, 2))
        assert torch.equal(decoder.decode(prompt).token_ids.cpu(),
                           decode_chunk(on_cpu, prompt, 5).token_ids)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_chunks_in_short_formats_flip_only_at_small_margins(dtype):
    rng = np.random.default_rng(4)
    exact, decoder = tiny_model(seed=6), engine(tiny_model(seed=6, dtype=dtype).cuda())
    for _ in range(20):
        prompt = action_prompt(rng, 2, (1, 2))
        chunk, tokens = decode_chunk(exact, prompt, 5), decoder.decode(prompt).token_ids.cpu()
        for action in range(5):
            flips = (chunk.token_ids[action] != tokens[action]).nonzero()
            if len(flips):
                assert chunk.margin[action, flips[0, 0]] < 0.15


@pytest.mark.skipif(torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9),
                    reason='8-bit products need compute capability 8.9')
def test_eight_bit_products_equal_their_emulation():
    torch.manual_seed(0)
    weight, x = torch.randn(64, 128).bfloat16(), torch.randn(1, 10, 128).bfloat16()
    on_gpu = Fp8Linear(weight.cuda())(x.cuda()).float().cpu()
    expected = Fp8Linear(weight)(x).float()
    assert float((on_gpu - expected).norm() / expected.norm()) < 0.01
    with pytest.raises(InferenceError, match='bfloat16'):
        Fp8Linear(weight.float().cuda())


def test_chunks_in_eight_bits_run():
    rng = np.random.default_rng(5)
    model = tiny_model(seed=1, hidden=64, dtype=torch.bfloat16).cuda()
    decoder = engine(model, weights='fp8')
    chunk = decoder.decode(action_prompt(rng, 2, (1, 2)))
    assert torch.isfinite(chunk.entropy).all()
