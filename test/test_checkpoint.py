# SPDX-License-Identifier: Apache-2.0
"""What is saved is loaded again, and what cannot be loaded is refused by name."""

from fnmatch import fnmatch
import json
from pathlib import Path

import huggingface_hub
import pytest
from safetensors.torch import load_file, save_file
from tiny_models import VOCABULARY, tiny_model
import torch

from worldvla_ros.errors import CheckpointError
from worldvla_ros.model import checkpoint
from worldvla_ros.model.checkpoint import (
    fingerprint,
    load_model,
    pick_dtype,
    resolve_folder,
    save_model,
)
from worldvla_ros.model.transformer import Transformer, TransformerConfig
from worldvla_ros.policy.pretrained import RELEASED_TEXT_TOKENIZERS
from worldvla_ros.tokens.vocab import Vocabulary

IDS = torch.arange(20)[None]


@pytest.fixture
def saved(tmp_path):
    save_model(tiny_model(), tmp_path)
    return tmp_path


def edit_weights(folder: Path, change) -> None:
    state = load_file(folder / 'model.safetensors')
    change(state)
    save_file(state, folder / 'model.safetensors')


def edit_config(folder: Path, **entries) -> None:
    config = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps(config | entries))


@pytest.mark.parametrize('qk_norm_rows', [1, 2, 4])
@torch.inference_mode()
def test_loaded_model_equals_the_saved_one(tmp_path, qk_norm_rows):
    model = tiny_model(qk_norm_rows=qk_norm_rows)
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.config == model.config
    assert not loaded.training
    torch.testing.assert_close(loaded(IDS), model(IDS), rtol=0, atol=0)


@torch.inference_mode()
def test_shards_are_loaded_as_one(tmp_path):
    save_model(tiny_model(), tmp_path, max_shard_bytes=30_000)
    assert not (tmp_path / 'model.safetensors').exists()
    assert len(list(tmp_path.glob('model-*-of-*.safetensors'))) > 2
    torch.testing.assert_close(load_model(tmp_path)(IDS), tiny_model()(IDS), rtol=0, atol=0)


@torch.inference_mode()
@pytest.mark.parametrize('sizes', [(10**9, 30_000), (30_000, 10**9), (30_000, 50_000)])
def test_a_model_that_is_saved_over_another_is_the_one_that_is_loaded(tmp_path, sizes):
    for seed, size in enumerate(sizes):
        save_model(tiny_model(seed), tmp_path, max_shard_bytes=size)
    assert torch.equal(load_model(tmp_path)(IDS), tiny_model(1)(IDS))
    save_model(tiny_model(1), tmp_path / 'alone', max_shard_bytes=sizes[1])
    alone = {file.name for file in (tmp_path / 'alone').iterdir()}
    assert {file.name for file in tmp_path.iterdir()} == {*alone, 'alone'}


@torch.inference_mode()
@pytest.mark.parametrize('size', [10**9, 30_000])
def test_a_model_that_cannot_be_saved_leaves_the_old_one(saved, monkeypatch, size):
    def disk_is_full(state, path):
        path.touch()
        raise OSError('no space left on device')
    monkeypatch.setattr(checkpoint, 'write_safetensors', disk_is_full)
    with pytest.raises(OSError, match='no space'):
        save_model(tiny_model(1), saved, max_shard_bytes=size)
    assert torch.equal(load_model(saved)(IDS), tiny_model()(IDS))
    assert sorted(file.name for file in saved.iterdir()) == ['config.json', 'model.safetensors']


def test_while_new_weights_take_their_place_none_load_rather_than_some_of_both(
        tmp_path, monkeypatch):
    save_model(tiny_model(), tmp_path, max_shard_bytes=30_000)
    moved, replace = [], Path.replace

    def fail_at_the_third(self, target):
        if len(moved) == 2:
            raise OSError('no space left on device')
        moved.append(target)
        return replace(self, target)
    monkeypatch.setattr(Path, 'replace', fail_at_the_third)
    with pytest.raises(OSError, match='no space'):
        save_model(tiny_model(1), tmp_path, max_shard_bytes=30_000)
    with pytest.raises(CheckpointError):
        load_model(tmp_path)


def test_a_missing_shard_is_named(tmp_path):
    save_model(tiny_model(), tmp_path, max_shard_bytes=30_000)
    lost = sorted(tmp_path.glob('model-*'))[1]
    lost.unlink()
    with pytest.raises(CheckpointError, match=lost.name):
        load_model(tmp_path)


@torch.inference_mode()
def test_a_subfolder_is_found(tmp_path):
    save_model(tiny_model(), tmp_path / 'model_256' / 'libero_goal')
    loaded = load_model(tmp_path, subfolder='model_256/libero_goal')
    torch.testing.assert_close(loaded(IDS), tiny_model()(IDS), rtol=0, atol=0)
    with pytest.raises(CheckpointError, match='libero_spatial'):
        load_model(tmp_path, subfolder='model_256/libero_spatial')


@torch.inference_mode()
def test_tied_embeddings_are_saved_once(tmp_path):
    config = TransformerConfig(hidden_size=32, intermediate_size=64, num_layers=1, num_heads=4,
                               tie_word_embeddings=True, vocabulary=VOCABULARY)
    model = Transformer(config).eval()
    save_model(model, tmp_path)
    assert 'lm_head.weight' not in load_file(tmp_path / 'model.safetensors')
    loaded = load_model(tmp_path)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    torch.testing.assert_close(loaded(IDS), model(IDS), rtol=0, atol=0)


def test_weights_take_the_asked_number_format(saved):
    assert load_model(saved, dtype=torch.bfloat16).dtype == torch.bfloat16
    assert load_model(saved).dtype == torch.float32


@torch.inference_mode()
def test_image_model_and_rotary_keys_of_base_checkpoints_are_ignored(saved):
    edit_weights(saved, lambda state: state.update({
        'model.vqmodel.encoder.conv_in.weight': torch.zeros(3),
        'model.layers.0.self_attn.rotary_emb.inv_freq': torch.zeros(4)}))
    torch.testing.assert_close(load_model(saved)(IDS), tiny_model()(IDS), rtol=0, atol=0)


def test_a_stale_begin_token_in_the_configuration_is_ignored(saved):
    edit_config(saved, bos_token_id=1)
    assert load_model(saved).config.vocabulary.bos == 0


def test_a_released_configuration_gets_chameleons_vocabulary(saved):
    config = json.loads((saved / 'config.json').read_text())
    del config['vocabulary']
    (saved / 'config.json').write_text(json.dumps(config | {'vocab_size': 65536}))
    with pytest.raises(CheckpointError, match=r'lm_head.*expected \(65536, 32\)'):
        load_model(saved)
    assert Vocabulary().bins == range(10006, 10262)


def test_a_truncated_file_is_named(saved):
    path = saved / 'model.safetensors'
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r'model\.safetensors is no complete'):
        load_model(saved)


def test_a_missing_key_is_named(saved):
    edit_weights(saved, lambda state: state.pop('model.layers.1.mlp.up_proj.weight'))
    with pytest.raises(CheckpointError, match=r'missing.*model\.layers\.1\.mlp\.up_proj\.weight'):
        load_model(saved)


def test_an_unexpected_key_is_named(saved):
    edit_weights(saved, lambda state: state.update({'model.extra': torch.zeros(3)}))
    with pytest.raises(CheckpointError, match=r'unexpected key model\.extra'):
        load_model(saved)


def test_a_wrong_shape_is_named_with_both_shapes(saved):
    edit_weights(saved, lambda state: state.update({'model.norm.weight': torch.zeros(31)}))
    with pytest.raises(CheckpointError, match=r'model\.norm\.weight.*\(31,\).*\(32,\)'):
        load_model(saved)


def test_a_head_norm_that_fits_no_heads_is_refused(saved):
    edit_weights(saved, lambda state: state.update(
        {'model.layers.0.self_attn.q_norm.weight': torch.zeros(3, 8)}))
    with pytest.raises(CheckpointError, match=r'q_norm\.weight.*\(3, 8\)'):
        load_model(saved)


@pytest.mark.parametrize(('entry', 'value'), [
    ('swin_norm', True), ('attention_bias', True), ('hidden_act', 'gelu'),
    ('rope_scaling', {'type': 'linear', 'factor': 2.0}), ('num_key_value_heads', 2),
    ('rope_parameters', {'rope_type': 'linear', 'factor': 8}), ('rope_parameters', {'factor': 8}),
    ('rope_parameters', ['linear'])])
def test_an_architecture_we_do_not_have_is_refused(saved, entry, value):
    edit_config(saved, **{entry: value})
    with pytest.raises(CheckpointError, match=entry):
        load_model(saved)


def test_the_base_of_the_rotary_embedding_is_read_where_newer_transformers_write_it(saved):
    edit_config(saved, rope_parameters={'rope_type': 'default', 'rope_theta': 500.0})
    config = json.loads((saved / 'config.json').read_text())
    del config['rope_theta']
    (saved / 'config.json').write_text(json.dumps(config))
    assert load_model(saved).config.rope_theta == 500.0


def test_an_incomplete_vocabulary_entry_is_refused(saved):
    edit_config(saved, vocabulary={'size': 100, 'stop': 3})
    with pytest.raises(CheckpointError, match=r"unknown keys \['stop'\].*missing keys"):
        load_model(saved)


@pytest.mark.parametrize(('entry', 'value'), [
    ('hidden_size', '32'), ('num_hidden_layers', 2.5), ('rms_norm_eps', None), ('rope_theta', 0),
    ('vocabulary', [1])])
def test_a_value_of_another_kind_is_named(saved, entry, value):
    """Pins a bug: it ended in a TypeError of torch, or was loaded."""
    edit_config(saved, **{entry: value})
    with pytest.raises(CheckpointError, match=entry):
        load_model(saved)


def test_a_token_of_another_kind_is_named(saved):
    edit_config(saved, vocabulary={**tiny_model().config.vocabulary.to_dict(), 'bos': 'a'})
    with pytest.raises(CheckpointError, match="bos is 'a', expected a whole number"):
        load_model(saved)


def test_an_index_without_files_is_refused(tmp_path):
    save_model(tiny_model(), tmp_path, max_shard_bytes=30_000)
    (tmp_path / 'model.safetensors.index.json').write_text('{"weight_map": null}')
    with pytest.raises(CheckpointError, match='weight_map is None'):
        load_model(tmp_path)


def test_quantized_weights_are_refused(saved):
    weights = load_file(saved / 'model.safetensors')
    weights['lm_head.weight'] = weights['lm_head.weight'].to(torch.int8)
    save_file(weights, saved / 'model.safetensors')
    with pytest.raises(CheckpointError, match=r'lm_head\.weight holds torch\.int8'):
        load_model(saved)


def test_a_pickle_is_not_loaded(saved):
    (saved / 'model.safetensors').unlink()
    torch.save({'model.norm.weight': torch.zeros(3)}, saved / 'pytorch_model.bin')
    with pytest.raises(CheckpointError, match=r'pytorch_model\.bin is a pickle'):
        load_model(saved)


def test_an_unreadable_configuration_is_named(saved):
    (saved / 'config.json').write_text('{')
    with pytest.raises(CheckpointError, match=r'config\.json'):
        load_model(saved)


def test_a_path_that_is_neither_folder_nor_hub_id_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match='no checkpoint folder'):
        load_model(tmp_path / 'nothing' / 'here')


def test_an_empty_folder_says_what_was_expected(tmp_path):
    with pytest.raises(CheckpointError, match=r'no model\.safetensors and no'):
        load_model(tmp_path)


def test_the_network_is_built_without_memory(saved, monkeypatch):
    built = []
    init = Transformer.__init__

    def spy(self, config):
        init(self, config)
        built.append({parameter.device.type for parameter in self.parameters()})
    monkeypatch.setattr(Transformer, '__init__', spy)
    load_model(saved)
    assert built == [{'meta'}]


def test_number_format_is_picked_by_the_device():
    assert pick_dtype('float16', 'cpu') == torch.float16
    assert pick_dtype(torch.float32, 'cuda') == torch.float32
    assert pick_dtype('auto', 'cuda:0') == torch.bfloat16
    cpu = torch.cpu.get_capabilities()
    fast = cpu.get('amx_bf16', False) or cpu.get('avx512_bf16', False)
    assert pick_dtype('auto', 'cpu') == (torch.bfloat16 if fast else torch.float32)
    with pytest.raises(CheckpointError, match='int8'):
        pick_dtype('int8', 'cpu')


def test_number_format_is_picked_where_torch_does_not_know_the_processor(monkeypatch):
    monkeypatch.delattr(torch.cpu, 'get_capabilities')
    assert pick_dtype('auto', 'cuda') == torch.bfloat16
    assert pick_dtype('auto', 'cpu') == torch.float32


def test_fingerprint_follows_the_weights(saved):
    before = fingerprint(saved)
    assert fingerprint(saved) == before
    edit_weights(saved, lambda state: state['model.norm.weight'].add_(1))
    assert fingerprint(saved) != before


@pytest.fixture
def downloads(tmp_path, monkeypatch):
    """The patterns of each download of an empty repository."""
    asked = []
    monkeypatch.setattr(huggingface_hub, 'snapshot_download',
                        lambda _, allow_patterns: asked.append(allow_patterns) or tmp_path)
    return asked


RELEASED = ('config.json', 'model.safetensors.index.json', 'model-00001-of-00003.safetensors')


def comes(file, patterns):
    return any(fnmatch(file, pattern) for pattern in patterns)


@pytest.mark.parametrize('subfolder', ['model_256', 'model_256/', './model_256'])
def test_a_download_brings_every_place_of_the_tokenizers_and_no_other_weights(
        tmp_path, downloads, subfolder):
    (tmp_path / 'model_256').mkdir()
    resolve_folder('Somebody/WorldVLA', subfolder)
    asked, = downloads
    assert all(comes(file, asked) for file in (
        *(f'model_256/{file}' for file in RELEASED), *RELEASED_TEXT_TOKENIZERS,
        'chameleon/tokenizer/vqgan.ckpt', 'model_256/image_tokenizer/model.safetensors'))
    assert not any(comes(file, asked) for file in (
        'base_model/model.safetensors', 'model_512/config.json',
        *(f'model_256/libero_goal/{file}' for file in RELEASED[2:])))


def test_a_download_without_subfolder_brings_no_weights_of_sub_folders(downloads):
    resolve_folder('Somebody/WorldVLA')
    asked, = downloads
    assert all(comes(file, asked) for file in (
        *RELEASED, 'model.safetensors', 'policy.json', 'tokenizer.json',
        'image_tokenizer/model.safetensors'))
    assert not any(comes(f'{folder}/{RELEASED[2]}', asked) for folder in (
        'model_256/libero_goal', 'model_512/libero_10', 'chameleon/starting_point'))


@pytest.mark.parametrize('subfolder', [None, 'model_256'])
def test_weights_wait_until_it_is_known_what_the_folder_holds(tmp_path, downloads, subfolder):
    (tmp_path / 'model_256').mkdir()
    resolve_folder('Somebody/WorldVLA', subfolder, with_weights=False)
    asked, = downloads
    assert comes(f'{subfolder}/policy.json' if subfolder else 'policy.json', asked)
    assert not comes('model_256/model-00001-of-00003.safetensors', asked)
