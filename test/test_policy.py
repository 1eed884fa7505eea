# SPDX-License-Identifier: Apache-2.0
"""The policy turns frames into chunks, the same ones on every path."""

from copy import deepcopy
from dataclasses import replace
import json
from multiprocessing import get_context

import huggingface_hub
import numpy as np
import pytest
from safetensors.torch import load_file
from tiny_models import static_chunk_decoder
import torch
import yaml

from worldvla_ros.datatypes import Frame, Observation
from worldvla_ros.errors import (
    CheckpointError,
    FrameError,
    InferenceError,
    InstructionError,
)
from worldvla_ros.model.generate import decode_chunk_in_order, generate_chunk
from worldvla_ros.policy.policy import WorldVLAPolicy
from worldvla_ros.policy.random_checkpoint import ensure_random_checkpoint
from worldvla_ros.policy.settings import POLICY_FILE, RELEASED, PolicySettings, settings_file
from worldvla_ros.tokens.action_tokenizer import BIN_CHOICES, LIBERO_MAXIMUM, LIBERO_MINIMUM

TASK = 'pick up the milk and place it in the basket'


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    return ensure_random_checkpoint(tmp_path_factory.mktemp('cache'))


@pytest.fixture(scope='module')
def policy(checkpoint):
    return WorldVLAPolicy.from_pretrained(checkpoint, dtype='float32')


def frame(seed, size=256):
    blocks = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    image = blocks.repeat(size // 8, 0).repeat(size // 8, 1)
    return Frame(image, stamp_ns=seed * 50_000_000)


def test_a_chunk_carries_all_that_was_asked_and_answered(policy):
    chunk = policy.predict_chunk(Observation((frame(1), frame(2)), TASK))
    assert chunk.actions.shape == chunk.token_ids.shape == chunk.entropy.shape == (5, 7)
    assert (chunk.actions.dtype, chunk.token_ids.dtype) == (np.float32, np.int32)
    assert (chunk.actions >= np.float32(LIBERO_MINIMUM)).all()
    assert (chunk.actions <= np.float32(LIBERO_MAXIMUM)).all()
    assert (chunk.entropy > 0).all()
    assert (chunk.entropy <= np.log(256)).all()
    assert chunk.instruction == TASK
    assert chunk.frame_stamps_ns == (50_000_000, 100_000_000)
    latency = chunk.latency
    assert min(latency.encode, latency.prefill, latency.decode) > 0
    assert latency.total == pytest.approx(latency.encode + latency.prefill + latency.decode)


def test_a_chunk_is_that_of_the_decoder_on_the_published_prompt(policy):
    frames = (frame(3), frame(4))
    codes = [policy.pretrained.encode(one.image) for one in frames]
    prompt = policy.pretrained.prompts.action(TASK, codes)
    expected = generate_chunk(policy.pretrained.model, prompt, 5).numpy()
    chunk = policy.predict_chunk(Observation(frames, TASK))
    np.testing.assert_array_equal(chunk.token_ids, expected)
    np.testing.assert_array_equal(
        chunk.actions, policy.pretrained.action_tokenizer.decode(expected).astype(np.float32))


def test_prepared_chunks_equal_one_shot_chunks(checkpoint, policy):
    other = WorldVLAPolicy(policy.pretrained)  # has a cache of its own
    for step in range(5, 9):
        policy.prepare([frame(step)], TASK)
        observation = Observation((frame(step), frame(step + 1)), TASK)
        np.testing.assert_array_equal(policy.predict_chunk(observation).token_ids,
                                      other.predict_chunk(observation).token_ids)


@pytest.mark.parametrize('observation', [
    Observation((frame(12), frame(13)), TASK),  # another older frame than prepared
    Observation((frame(11),), TASK),  # the start of an episode
    Observation((frame(11), frame(13)), 'open the top drawer')])
def test_a_wrong_preparation_changes_nothing(policy, observation):
    expected = WorldVLAPolicy(policy.pretrained).predict_chunk(observation).token_ids
    policy.prepare([frame(11)], TASK)
    np.testing.assert_array_equal(policy.predict_chunk(observation).token_ids, expected)


def test_preparing_leaves_one_image_to_compute(policy, monkeypatch):
    rows = []
    model = policy.pretrained.model
    original = model.rows
    monkeypatch.setattr(model, 'rows',
                        lambda ids, **k: rows.append(ids.shape[1]) or original(ids, **k))
    policy.prepare([frame(21)], TASK)
    del rows[:]
    policy.predict_chunk(Observation((frame(21), frame(22)), TASK))
    assert rows[0] <= 276 + 1 + 5  # less where the new image starts with the same codes
    assert rows[1:] == [5] * 6


def test_a_frame_is_encoded_once(policy, monkeypatch):
    encoded = []
    original = type(policy.pretrained).encode
    monkeypatch.setattr(type(policy.pretrained), 'encode',
                        lambda self, image: encoded.append(1) or original(self, image))
    for step in range(31, 35):
        policy.predict_chunk(Observation((frame(step), frame(step + 1)), TASK))
    assert len(encoded) == 5


def test_a_changed_buffer_is_not_taken_for_the_old_frame(policy):
    image = frame(41).image.copy()
    before = policy.predict_chunk(Observation((Frame(image, 0),), TASK)).token_ids
    image[:] = frame(42).image
    after = policy.predict_chunk(Observation((Frame(image, 0),), TASK)).token_ids
    expected = policy.predict_chunk(Observation((frame(42),), TASK)).token_ids
    np.testing.assert_array_equal(after, expected)
    assert (before != after).any()


def test_another_size_is_resized_and_another_shape_refused(policy):
    assert policy.predict_chunk(Observation((frame(1, 512),), TASK)).horizon == 5
    wide = Frame(np.zeros((256, 320, 3), np.uint8), 0)
    with pytest.raises(FrameError, match='square'):
        policy.predict_chunk(Observation((wide,), TASK))


def test_observations_that_fit_no_prompt_are_refused(policy):
    with pytest.raises(FrameError, match='1 to 2 frames, got 3'):
        policy.predict_chunk(Observation((frame(1), frame(2), frame(3)), TASK))
    with pytest.raises(FrameError, match='got 0'):
        policy.predict_chunk(Observation((), TASK))
    with pytest.raises(InstructionError):
        policy.predict_chunk(Observation((frame(1),), '  '))
    with pytest.raises(InstructionError, match='tokens too long'):
        policy.predict_chunk(Observation((frame(1), frame(2)), 'xyz ' * 400))
    assert policy.predict_chunk(Observation((frame(1),), TASK)).horizon == 5, 'it recovers'


def test_warm_up_changes_no_result(policy):
    observation = Observation((frame(51), frame(52)), TASK)
    before = policy.predict_chunk(observation).token_ids
    policy.warm_up()
    np.testing.assert_array_equal(policy.predict_chunk(observation).token_ids, before)


def test_description_says_that_the_weights_are_random(policy):
    assert '8.5 M parameters, random weights, float32 on cpu, sha256:' in policy.description


def test_the_horizon_can_be_chosen(checkpoint):
    policy = WorldVLAPolicy.from_pretrained(checkpoint, num_actions=10)
    assert policy.predict_chunk(Observation((frame(1),), TASK)).actions.shape == (10, 7)


def test_weights_in_eight_bits_are_asked_for_and_named(checkpoint, monkeypatch):
    asked = []
    monkeypatch.setattr('worldvla_ros.policy.policy.checked_weights', lambda *_: None)
    monkeypatch.setattr('worldvla_ros.policy.policy.chunk_decoder',
                        lambda *_, weights, **options: asked.append(weights))
    policy = WorldVLAPolicy.from_pretrained(checkpoint, weights='fp8')
    assert asked == ['fp8'] and policy.description.endswith(', fp8 weights')


def test_weights_in_eight_bits_are_refused_on_a_cpu_before_anything_is_read(tmp_path):
    with pytest.raises(InferenceError, match="'fp8' need a CUDA device"):
        WorldVLAPolicy.from_pretrained(tmp_path / 'nothing here', weights='fp8')


def test_weights_in_eight_bits_are_refused_before_the_networks_are_read(tmp_path, checkpoint,
                                                                        monkeypatch):
    """Pins a bug: 14 GB were read first. Here is a folder that has the settings alone."""
    monkeypatch.setattr('worldvla_ros.policy.policy.require_device', lambda device: None)
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda device: 'a card')
    settings = PolicySettings.load(checkpoint / POLICY_FILE)
    replace(settings, chunk_mask=False).save(tmp_path / POLICY_FILE)
    with pytest.raises(InferenceError, match=r"'fp8' need .*action-chunk mask"):
        WorldVLAPolicy.from_pretrained(tmp_path, device='cuda', weights='fp8')
    with pytest.raises(InferenceError, match=r"'fp8' need .* got a card and torch\.float16"):
        WorldVLAPolicy.from_pretrained(tmp_path / 'nothing here', device='cuda', dtype='float16',
                                       weights='fp8')


def test_the_random_checkpoint_is_the_same_for_the_same_seed(tmp_path, checkpoint):
    again = ensure_random_checkpoint(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [again.name]  # no draft left
    for file in sorted(again.rglob('*.*')):
        if file.is_file():
            assert file.read_bytes() == (checkpoint / file.relative_to(again)).read_bytes(), file
    other = ensure_random_checkpoint(tmp_path, seed=1)
    assert (other / 'model.safetensors').read_bytes() != (
        again / 'model.safetensors').read_bytes()


def test_processes_that_make_the_random_checkpoint_at_once_all_get_it(tmp_path):
    with get_context('spawn').Pool(2) as pool:
        folders = pool.map(ensure_random_checkpoint, [tmp_path] * 2)
    assert folders[0] == folders[1]
    assert (folders[0] / 'model.safetensors').is_file()


def test_random_weights_leave_the_random_generator_alone(tmp_path):
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    ensure_random_checkpoint(tmp_path)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(('file', 'message'), [
    ('tokenizer.json', r'no tokenizer\.json'), ('policy.json', 'worldvla_512_libero_10'),
    ('model.safetensors', r'no model\.safetensors'),
    ('image_tokenizer/config.json', 'no image tokenizer'), ('config.json', r'config\.json')])
def test_a_missing_file_is_named(tmp_path, checkpoint, file, message):
    for path in checkpoint.rglob('*'):
        if path.is_file() and str(path.relative_to(checkpoint)) != file:
            target = tmp_path / path.relative_to(checkpoint)
            target.parent.mkdir(exist_ok=True)
            target.symlink_to(path)
    with pytest.raises(CheckpointError, match=message):
        WorldVLAPolicy.from_pretrained(tmp_path)


@pytest.fixture
def released(tmp_path, checkpoint):
    """The released repository's layout, without a text tokenizer."""
    weights = tmp_path / 'model_256' / 'libero_goal'
    tokenizers = tmp_path / 'chameleon' / 'tokenizer'
    for folder in (weights, tokenizers, tmp_path / 'base_model'):
        folder.mkdir(parents=True)
    for name in ('config.json', 'model.safetensors', 'policy.json'):
        (weights / name).symlink_to(checkpoint / name)
    images = checkpoint / 'image_tokenizer'
    entries = json.loads((images / 'config.json').read_text())
    (tokenizers / 'vqgan.yaml').write_text(yaml.safe_dump(entries))
    torch.save({'state_dict': load_file(images / 'model.safetensors')},
               tokenizers / 'vqgan.ckpt')
    return tmp_path


@pytest.mark.parametrize('others', [
    ('chameleon/tokenizer/text_tokenizer.json',), ('chameleon/tokenizer/tokenizer.json',),
    ('base_model/tokenizer.json', 'chameleon/tokenizer/text_tokenizer.json')])
def test_the_released_repositorys_layout_is_read(released, checkpoint, policy, others):
    """The base model's text tokenizer comes first: the weights were trained with it."""
    used, *unused = others
    (released / used).symlink_to(checkpoint / 'tokenizer.json')
    for name in unused:
        (released / name).write_text('not this one')
    loaded = WorldVLAPolicy.from_pretrained(released, subfolder='model_256/libero_goal',
                                            dtype='float32')
    observation = Observation((frame(1), frame(2)), TASK)
    np.testing.assert_array_equal(loaded.predict_chunk(observation).token_ids,
                                  policy.predict_chunk(observation).token_ids)


def test_without_a_text_tokenizer_all_places_that_were_looked_at_are_named(released):
    with pytest.raises(CheckpointError) as error:
        WorldVLAPolicy.from_pretrained(released, subfolder='model_256/libero_goal')
    for file in ('model_256/libero_goal/tokenizer.json', 'base_model/tokenizer.json',
                 'chameleon/tokenizer/text_tokenizer.json'):
        assert str(released / file) in str(error.value)


@pytest.mark.parametrize('name', ['worldvla_256_libero', 'worldvla_256_libero_10',
                                  'worldvla_512_libero', 'worldvla_512_libero_10'])
def test_settings_of_released_checkpoints_are_the_published_ones(name):
    settings = PolicySettings.load(settings_file(name))
    assert settings.trained
    assert settings.history_length == 2
    assert settings.horizon == (10 if 'libero_10' in name else 5)
    assert settings.image_size == (512 if '512' in name else 256)
    assert (settings.action_minimum, settings.action_maximum) == (LIBERO_MINIMUM, LIBERO_MAXIMUM)


@pytest.fixture
def hub(released, checkpoint, monkeypatch):
    """The released repository on a hub, without policy.json; the patterns of each download."""
    (released / 'base_model' / 'tokenizer.json').symlink_to(checkpoint / 'tokenizer.json')
    (released / 'model_256' / 'libero_goal' / 'policy.json').unlink()
    asked = []
    monkeypatch.setattr(huggingface_hub, 'snapshot_download',
                        lambda _, allow_patterns: asked.append(allow_patterns) or released)
    return asked


def test_a_released_checkpoint_loads_by_its_hub_id_and_the_name_of_its_settings(hub):
    loaded = WorldVLAPolicy.from_pretrained('Somebody/WorldVLA', subfolder='model_256/libero_goal',
                                            dtype='float32', settings='worldvla_256_libero')
    assert loaded.pretrained.settings == PolicySettings.load(RELEASED['worldvla_256_libero'])
    assert loaded.predict_chunk(Observation((frame(1), frame(2)), TASK)).horizon == 5


@pytest.mark.parametrize(('lost', 'places'), [
    ('chameleon/tokenizer/vqgan.ckpt', ('model_256/libero_goal/image_tokenizer',
                                        'chameleon/tokenizer')),
    ('chameleon', ('model_256/libero_goal/image_tokenizer', 'chameleon/tokenizer')),
    ('base_model', ('model_256/libero_goal/tokenizer.json', 'base_model/tokenizer.json',
                    'chameleon/tokenizer/text_tokenizer.json'))])
def test_tokenizers_are_missed_before_weights_are_fetched(hub, released, lost, places):
    """Pins a bug: they were looked for after 14 GB had been fetched and read."""
    (released / lost).rename(released / 'elsewhere')
    with pytest.raises(CheckpointError) as error:
        WorldVLAPolicy.from_pretrained('Somebody/WorldVLA', subfolder='model_256/libero_goal',
                                       settings='worldvla_256_libero')
    assert all(str(released / place) in str(error.value) for place in places)
    assert not any(pattern.startswith('model_256/libero_goal/model')
                   for patterns in hub for pattern in patterns)


@pytest.mark.parametrize('options', [{'subfolder': 'model_256/libero_goal'}, {}])
def test_settings_are_missed_before_weights_are_fetched(hub, options):
    with pytest.raises(CheckpointError, match=r'no .*policy\.json.*, worldvla_256_libero_10,'):
        WorldVLAPolicy.from_pretrained('Somebody/WorldVLA', **options)
    assert not any('safetensors' in pattern for patterns in hub for pattern in patterns)
    with pytest.raises(CheckpointError, match=r'no worldvla_7b:'):
        WorldVLAPolicy.from_pretrained('Somebody/WorldVLA', settings='worldvla_7b', **options)
    assert not any('safetensors' in pattern for patterns in hub for pattern in patterns)


def test_a_checkpoint_trained_without_the_chunk_mask_is_decoded_without_it(policy):
    settings = replace(policy.pretrained.settings, chunk_mask=False)
    unmasked = WorldVLAPolicy(replace(policy.pretrained, settings=settings))
    frames = (frame(3), frame(4))
    codes = [policy.pretrained.encode(one.image) for one in frames]
    prompt = policy.pretrained.prompts.action(TASK, codes)
    expected = decode_chunk_in_order(policy.pretrained.model, prompt, 5).token_ids.numpy()
    chunk = unmasked.predict_chunk(Observation(frames, TASK))
    np.testing.assert_array_equal(chunk.token_ids, expected)


@pytest.fixture(params=['eager', 'static'])
def decoder(request, monkeypatch):
    """Let policies decode by plain passes, or by the engine that a GPU gets."""
    if request.param == 'static':
        monkeypatch.setattr('worldvla_ros.policy.policy.chunk_decoder', static_chunk_decoder)


@pytest.mark.parametrize('choice', BIN_CHOICES)
def test_broken_weights_are_reported_not_sent_to_the_robot(policy, decoder, choice):
    model = deepcopy(policy.pretrained.model)
    torch.nn.init.constant_(model.model.norm.weight, torch.nan)
    settings = replace(policy.pretrained.settings, bin_choice=choice)
    broken = WorldVLAPolicy(replace(policy.pretrained, model=model, settings=settings))
    with pytest.raises(InferenceError, match='NaN'):
        broken.predict_chunk(Observation((frame(1),), TASK))


@pytest.mark.parametrize('ahead', [False, True])
def test_nan_of_one_frame_is_gone_with_it(policy, decoder, ahead):
    model = deepcopy(policy.pretrained.model)
    bad, *clean = (frame(seed) for seed in (61, 62, 63))
    codes = [set(policy.pretrained.encode(one.image).ravel().tolist()) for one in (bad, *clean)]
    own = min(codes[0] - codes[1] - codes[2])
    with torch.no_grad():
        model.model.embed_tokens.weight[model.config.vocabulary.code_start + own] = torch.nan
    pretrained = replace(policy.pretrained, model=model)
    spoiled, fresh = WorldVLAPolicy(pretrained), WorldVLAPolicy(pretrained)
    if ahead:
        spoiled.prepare([bad], TASK)
    with pytest.raises(InferenceError, match='NaN for this observation'):
        spoiled.predict_chunk(Observation((bad, clean[0]), TASK))
    for frames in (clean[:1], clean):
        chunk, expected = (one.predict_chunk(Observation(tuple(frames), TASK))
                           for one in (spoiled, fresh))
        np.testing.assert_array_equal(chunk.token_ids, expected.token_ids)
        np.testing.assert_array_equal(chunk.entropy, expected.entropy)


@pytest.mark.parametrize(('content', 'got'), [('null', 'None'), ('3', '3'), ('[]', r'\[\]')])
def test_settings_that_are_no_object_are_refused(tmp_path, content, got):
    """Pins a bug: null and numbers ended in a TypeError."""
    (tmp_path / 'policy.json').write_text(content)
    with pytest.raises(CheckpointError, match=f'policy.json: expected an object .*got {got}$'):
        PolicySettings.load(tmp_path / 'policy.json')


@pytest.mark.parametrize(('entry', 'message'), [
    ({'image_size': 250}, 'multiple of 32'), ({'image_size': '256'}, 'image_size must be int'),
    ({'horizon': 0}, 'horizon must be int >= 1'), ({'horizon': 2.5}, 'horizon must be int'),
    ({'history_length': True}, 'history_length must be int'), ({'name': None}, 'name must be str'),
    ({'bin_choice': 'median'}, "bin_choice .*'greedy', 'mean'"),
    ({'action_minimum': None}, 'action_minimum'), ({'action_minimum': [-1] * 6}, 'action minimum'),
    ({'action_minimum': [1] * 7}, 'every action minimum must be below'),
    ({'action_maximum': ['1'] * 7}, 'action_maximum'), ({'state_minimum': 5}, 'state_minimum'),
    ({'state_minimum': [0] * 7, 'state_maximum': [1] * 8}, 'state maximum must be 7'),
    ({'action_prompt': 'go'}, 'instruction'), ({'action_prompt': 5}, 'action_prompt must be str'),
    ({'action_prompt': '{instruction} in {place}'}, 'nothing else in braces'),
    ({'action_prompt': '{instruction} {'}, 'braces'),
    ({'action_prompt': '{0} {instruction}'}, 'braces'),
    ({'action_prompt': 'do {{instruction}}'}, 'braces'),
    ({'colour': 'red'}, "with the keys.*'colour'")])
def test_unusable_settings_are_refused(tmp_path, checkpoint, entry, message):
    entries = json.loads((checkpoint / 'policy.json').read_text()) | entry
    (tmp_path / 'policy.json').write_text(json.dumps(entries))
    with pytest.raises(CheckpointError, match=message):
        WorldVLAPolicy.from_pretrained(tmp_path)
