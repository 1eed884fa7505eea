# SPDX-License-Identifier: Apache-2.0
"""The numbers of the public implementation, each to its tolerance."""

from copy import deepcopy
import json

from golden_data import golden
import numpy as np
import pytest
import torch

from worldvla_ros.model.attention_mask import action_chunk_mask
from worldvla_ros.model.checkpoint import load_model
from worldvla_ros.model.engine.chunk import StaticChunkDecoder
from worldvla_ros.model.engine.image import StaticImageRows
from worldvla_ros.model.generate import decode_chunk, generate_chunk, generate_free
from worldvla_ros.model.image_decoding import decode_image, decode_image_rows
from worldvla_ros.model.image_preprocessing import resize_to_cover
from worldvla_ros.model.image_tokenizer import load_image_tokenizer
from worldvla_ros.tokens.action_tokenizer import ActionTokenizer
from worldvla_ros.tokens.sequence import PromptBuilder, parse_action_chunk, parse_image_block
from worldvla_ros.tokens.vocab import Vocabulary

LOGITS_TOLERANCE = 1e-4
ACTION_CASES = ('a02_m2_k5_64px_mask', 'a05_m1_k10_96x64px_mask')
CASES = (*ACTION_CASES, 'a02_m2_k5_64px_nomask', 'w01_64px_mask')
MASKS = sorted({key.split('/')[0] for key in np.load(golden('att_masks.npz')).files})


@pytest.fixture(scope='module')
def model():
    return load_model(golden('model.safetensors').parent)


@pytest.fixture(scope='module')
def image_tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp('image_tokenizer')
    for name, there in (('config.json', 'vqgan_config.json'),
                        ('model.safetensors', 'vqgan_weights.safetensors')):
        (folder / name).symlink_to(golden(there))
    return load_image_tokenizer(folder)


def case(name):
    return np.load(golden(f'llm_{name}.npz'))


@pytest.mark.parametrize('name', MASKS)
def test_action_chunk_mask_equals_the_published_mask(name):
    masks = np.load(golden('att_masks.npz'))
    mask = action_chunk_mask(torch.from_numpy(masks[f'{name}/ids']))
    assert mask.dtype == torch.bool
    np.testing.assert_array_equal(mask.numpy(), masks[f'{name}/v3'])


def test_action_tokens_equal_the_published_ones():
    data = np.load(golden('action_tokenizer.npz'))
    tokenizer = ActionTokenizer(data['min_values'], data['max_values'])
    np.testing.assert_array_equal(tokenizer.encode(data['actions']), data['token_ids'])
    np.testing.assert_array_equal(tokenizer.normalize(data['actions']), data['normalized'])
    np.testing.assert_array_equal(parse_action_chunk(data['block_ids'].reshape(-1), Vocabulary()),
                                  data['token_ids'])


def test_actions_equal_the_published_ones_to_the_last_bit():
    data = np.load(golden('action_tokenizer.npz'))
    tokenizer = ActionTokenizer(data['min_values'], data['max_values'])
    np.testing.assert_array_equal(tokenizer.decode(data['token_ids']), data['decoded_action'])
    np.testing.assert_array_equal(tokenizer.dequantize(data['sweep_ids']),
                                  data['sweep_decoded_f32'])


@pytest.mark.parametrize('name', CASES)
def test_logits_equal_the_published_ones(model, name):
    data = case(name)
    with torch.inference_mode():
        logits = model(torch.from_numpy(data['seq'])[None], torch.from_numpy(data['mask'])[None])
    assert logits.dtype == torch.float32
    logits = logits[0].numpy()
    np.testing.assert_allclose(logits[data['logits_full_pos']], data['logits_full'],
                               atol=LOGITS_TOLERANCE, rtol=0)
    np.testing.assert_allclose(logits[data['logits_sub_pos']][:, data['sub_ids']],
                               data['logits_sub'], atol=LOGITS_TOLERANCE, rtol=0)


@pytest.mark.parametrize('name', CASES)
def test_hidden_states_equal_the_published_ones(model, name):
    data = case(name)
    ids = torch.from_numpy(data['seq'])[None]
    states = [model.model.embed_tokens(ids).detach()]
    hooks = [layer.register_forward_hook(lambda _m, _i, out: states.append(out))
             for layer in model.model.layers[:-1]]
    with torch.inference_mode():
        states.append(model.rows(ids, mask=torch.from_numpy(data['mask'])))
    for hook in hooks:
        hook.remove()
    np.testing.assert_allclose(torch.cat(states).detach().numpy(), data['hidden_states'],
                               atol=LOGITS_TOLERANCE, rtol=0)


@pytest.mark.parametrize('name', CASES)
def test_free_decoding_emits_the_published_tokens(model, name):
    data = case(name)
    attention = 'action_chunk' if data['att_mask'] else 'causal'
    ids = generate_free(model, data['input_ids'], int(data['free_greedy_max_new_tokens']),
                        attention)
    np.testing.assert_array_equal(ids.numpy(), data['free_greedy'])


@pytest.mark.parametrize('name', ACTION_CASES)
def test_parallel_decoding_emits_the_published_chunk(model, name):
    data = case(name)
    expected = parse_action_chunk(data['forced_ids'], Vocabulary())
    ids = generate_chunk(model, torch.from_numpy(data['input_ids']), num_actions=int(data['K']))
    assert ids.dtype == torch.int64
    np.testing.assert_array_equal(ids.numpy(), expected)
    decoded = decode_chunk(model, data['input_ids'], int(data['K']), certify=True)
    assert int(decoded.violations) == 0  # these prompts were fitted to emit the grammar freely
    np.testing.assert_allclose(decoded.margin.numpy().reshape(-1), data['forced_margin'],
                               atol=LOGITS_TOLERANCE)


@pytest.mark.parametrize('name', ACTION_CASES)
def test_the_engine_emits_the_published_chunk(model, name):
    data = case(name)
    prompt, num_actions = data['input_ids'], int(data['K'])
    decoder = StaticChunkDecoder(deepcopy(model), num_actions, newest_rows=32,
                                 prompt_buckets=[len(prompt) + 5])
    for ahead in (0, len(prompt) - 30):  # the whole prompt, and all but the newest rows before
        if ahead:
            decoder.prefill([1, *prompt[:ahead]])
            decoder.prefill(prompt[:ahead])
        decoded = decoder.decode(prompt)
        np.testing.assert_array_equal(decoded.token_ids.numpy(),
                                      parse_action_chunk(data['forced_ids'], Vocabulary()))
        np.testing.assert_allclose(decoded.margin.numpy().reshape(-1), data['forced_margin'],
                                   atol=LOGITS_TOLERANCE)


def test_the_engine_emits_the_published_frame(model):
    data = case('w01_64px_mask')
    prompt, grid = data['input_ids'].tolist(), tuple(int(side) for side in data['grid_hw'])
    expected = parse_image_block(data['forced_ids'], Vocabulary())
    rows = StaticImageRows(deepcopy(model), len(prompt) + 3, expected.size + len(expected), 16)
    for draft in (None, data['image_codes'][0]):
        image = decode_image_rows(rows, prompt, grid, draft=draft, max_window=16)
        np.testing.assert_array_equal(image.codes.numpy(), expected)


def test_image_decoding_emits_the_published_frame(model):
    data = case('w01_64px_mask')
    grid = tuple(int(side) for side in data['grid_hw'])
    expected = parse_image_block(data['forced_ids'], Vocabulary())
    for draft in (None, data['image_codes'][0], expected):
        drafted = decode_image(model, data['input_ids'], grid, draft=draft)
        np.testing.assert_array_equal(drafted.codes.numpy(), expected)


class PublishedText:
    """A text tokenizer that says one thing."""

    def __init__(self, ids):
        self._ids = ids

    def encode(self, _):
        return self._ids


@pytest.mark.parametrize('name', CASES)
def test_our_prompts_are_those_that_were_published(name):
    data = case(name)
    prompts = PromptBuilder(PublishedText(data['text_ids'].tolist()), Vocabulary())
    prompt = (prompts.world(*data['image_codes'], data['action_ids']) if name.startswith('w')
              else prompts.action('any', data['image_codes']))
    np.testing.assert_array_equal(prompt, data['input_ids'])


@pytest.mark.parametrize('tag', ['64', '96x64', '256'])
def test_image_codes_and_pixels_equal_the_published_ones(image_tokenizer, tag):
    data = np.load(golden('vqgan.npz'))
    frame, codes = data[f'img{tag}'][None], data[f'codes{tag}']
    np.testing.assert_array_equal(image_tokenizer.encode(frame)[0].numpy(), codes)
    np.testing.assert_allclose(image_tokenizer.latents(frame)[0].numpy(), data[f'z{tag}'],
                               atol=1e-4)
    pixels = image_tokenizer.decode(torch.from_numpy(codes)[None])[0]
    assert pixels.dtype == torch.uint8
    difference = pixels.numpy().astype(int) - data[f'dec_uint8{tag}']
    assert abs(difference).max() <= 1  # truncation turns 1e-6 into a whole step


def test_images_are_resized_to_the_published_sizes():
    for expected in json.loads(golden('crop_cases.json').read_text())['cases']:
        width, height = expected['input_wh']
        image = np.zeros((height, width, 3), np.uint8)
        resized = resize_to_cover(image, tuple(expected['crop_wh']))
        assert [resized.shape[1], resized.shape[0]] == expected['resized_wh'], expected
