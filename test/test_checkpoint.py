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
    ('rope_scaling', {'type': 'linear', 'factor': 2.0}), ('num_key_value_heads', 2)])
def test_an_architecture_we_do_not_have_is_refused(saved, entry, value):
    edit_config(saved, **{entry: value})
    with pytest.raises(CheckpointError, match=entry):
        load_model(saved)


def test_an_incomplete_vocabulary_entry_is_refused(saved):
    edit_config(saved, vocabulary={'size': 100, 'stop': 3})
    with pytest.raises(CheckpointError, match=r"unknown keys \['stop'\].*missing keys"):
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


def test_a_download_brings_every_place_of_the_tokenizers_and_no_other_weights(tmp_path,
                                                                              monkeypatch):
    asked = []
    monkeypatch.setattr(huggingface_hub, 'snapshot_download',
                        lambda _, allow_patterns: asked.extend(allow_patterns) or tmp_path)
    (tmp_path / 'model_256').mkdir()
    resolve_folder('Somebody/WorldVLA', 'model_256')

    def comes(file):
        return any(fnmatch(file, pattern) for pattern in asked)
    assert all(comes(file) for file in ('model_256/model-1.safetensors', *RELEASED_TEXT_TOKENIZERS,
                                        'chameleon/tokenizer/vqgan.ckpt'))
    assert not comes('base_model/model.safetensors') and not comes('model_512/config.json')
