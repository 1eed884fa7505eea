# SPDX-License-Identifier: Apache-2.0
"""Images go to codes and back; files and frames that do not fit are refused."""

from argparse import Namespace
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from worldvla_ros.errors import CheckpointError, FrameError
from worldvla_ros.model.engine.frame import StaticFrameEncoder
from worldvla_ros.model.image_preprocessing import resize_to_cover, square_frame
from worldvla_ros.model.image_tokenizer import (
    ImageTokenizer,
    load_image_tokenizer,
    round_to_half,
    save_image_tokenizer,
    tokenizer_fingerprint,
)
from worldvla_ros.model.vqgan import ImageTokenizerConfig
from worldvla_ros.policy.named_checkpoints import locate_checkpoint

CONFIG = ImageTokenizerConfig(embed_dim=4, n_embed=32, z_channels=4, ch=4,
                              ch_mult=(1, 1, 2, 2, 2), num_res_blocks=1, norm_groups=4)
META_CONFIG = {'embed_dim': 4, 'n_embed': 32, 'ddconfig': {
    'double_z': False, 'z_channels': 4, 'resolution': 64, 'in_channels': 3, 'out_ch': 3,
    'ch': 32, 'ch_mult': [1, 1, 2, 2, 2], 'num_res_blocks': 1, 'attn_resolutions': [],
    'dropout': 0.0}}


def tokenizer_of(config=CONFIG):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ImageTokenizer(config).eval()


def frames(count=2, height=64, width=96, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8)


def write_meta_layout(folder, tokenizer, zipped=True, **extra):
    (folder / 'vqgan.yaml').write_text(yaml.safe_dump({'model': {'params': META_CONFIG}}))
    torch.save({'state_dict': {**tokenizer.state_dict(), 'loss.logvar': torch.zeros(1),
                               'model_ema.decay': torch.zeros(())}, **extra},
               folder / 'vqgan.ckpt', _use_new_zipfile_serialization=zipped)


def test_shapes_and_types_of_both_directions():
    tokenizer = tokenizer_of()
    codes = tokenizer.encode(frames())
    assert codes.shape == (2, 4, 6)
    assert codes.dtype == torch.int64
    pixels = tokenizer.decode(codes)
    assert pixels.shape == (2, 64, 96, 3)
    assert pixels.dtype == torch.uint8
    assert tokenizer.factor == 16


def test_arrays_and_tensors_give_the_same_codes():
    tokenizer, image = tokenizer_of(), frames()
    image.setflags(write=False)  # as frames from a camera are
    assert torch.equal(tokenizer.encode(image), tokenizer.encode(torch.tensor(image)))


def test_an_encoder_of_one_size_gives_the_same_codes():
    encoder = StaticFrameEncoder(tokenizer := tokenizer_of(), 64)
    for frame in frames(3, width=64):
        np.testing.assert_array_equal(encoder.encode(frame), tokenizer.encode(frame[None])[0])


def test_a_batch_equals_its_images_one_by_one():
    tokenizer, image = tokenizer_of(), frames(3)
    latents = tokenizer.latents(image)
    single = torch.cat([tokenizer.latents(one[None]) for one in image])
    torch.testing.assert_close(latents, single, atol=1e-5, rtol=1e-5)


def test_code_vectors_are_their_own_nearest_codes():
    tokenizer = tokenizer_of()
    indices = torch.randint(0, 32, (2, 3, 5), generator=torch.manual_seed(0))
    vectors = tokenizer.quantize.embedding(indices).permute(0, 3, 1, 2)
    assert torch.equal(tokenizer.quantize.nearest(vectors), indices)


def test_pixels_are_truncated_not_rounded(monkeypatch):
    tokenizer = tokenizer_of()
    values = torch.tensor([-2.0, -1.0, 0.0, 0.999, 1.0, 3.0])
    raw = values.repeat(1, 3, 1, 1)
    monkeypatch.setattr(tokenizer, 'decode_raw', lambda codes: raw)
    assert tokenizer.decode(None)[0, 0, :, 0].tolist() == [0, 0, 127, 254, 255, 255]


@pytest.mark.parametrize('bad', [
    frames()[0], frames().astype(np.float32), frames(height=60), frames()[..., :2],
    frames(width=100), np.zeros((0, 64, 64, 3), np.uint8)])
def test_frames_that_do_not_fit_are_refused(bad):
    with pytest.raises(FrameError, match='multiples of 16'):
        tokenizer_of().encode(bad)


@pytest.mark.parametrize('bad', [np.zeros((2, 2), int), np.full((1, 2, 2), 32),
                                 np.full((1, 2, 2), -1), np.zeros((1, 2, 2))])
def test_codes_that_do_not_exist_are_refused(bad):
    with pytest.raises(FrameError, match='code indices'):
        tokenizer_of().decode(bad)


@pytest.mark.parametrize('patch_size, ch_mult', [(1, (1, 1, 2, 2, 2)), (4, (1, 2, 2))])
def test_a_local_encoder_sees_no_further_than_two_codes(patch_size, ch_mult):
    config = replace(CONFIG, patch_size=patch_size, ch_mult=ch_mult)
    before = frames(1, 96, 96)
    after = before.copy()
    after[:, 32:48, 32:48] = 255 - after[:, 32:48, 32:48]
    changed = {}
    for local in (True, False):
        tokenizer = tokenizer_of(replace(config, local_encoder=local))
        difference = (tokenizer.latents(before) - tokenizer.latents(after)).abs().amax((0, 1))
        changed[local] = difference > 1e-6
    assert changed[False].all(), 'the norms of the public layout span the picture'
    near = torch.zeros(6, 6, dtype=torch.bool)
    near[:4, :4] = True  # two codes before it to one behind: halving the size looks ahead
    assert changed[True][2, 2] and not changed[True][~near].any()


def test_what_older_tokenizers_are_known_by_stays():
    """Their stores name them by a hash of their configuration and weights."""
    assert 'local_encoder' not in CONFIG.to_dict()
    local = replace(CONFIG, local_encoder=True)
    assert ImageTokenizerConfig.from_dict(local.to_dict()) == local
    assert tokenizer_fingerprint(load_image_tokenizer(
        locate_checkpoint('worldvla-mini-libero') + '/image_tokenizer')) == 'sha256:43ea276b2dbc'


def test_saved_tokenizer_gives_the_same_codes_and_pixels(tmp_path):
    tokenizer = tokenizer_of()
    save_image_tokenizer(tokenizer, tmp_path)
    loaded = load_image_tokenizer(tmp_path)
    assert loaded.config == tokenizer.config
    codes = loaded.encode(frames())
    assert torch.equal(codes, tokenizer.encode(frames()))
    assert torch.equal(loaded.decode(codes), tokenizer.decode(codes))


def test_a_rounded_tokenizer_takes_half_the_space_and_stays_the_same(tmp_path):
    tokenizer = tokenizer_of()
    save_image_tokenizer(tokenizer, tmp_path / 'whole')
    round_to_half(tokenizer)
    save_image_tokenizer(tokenizer, tmp_path / 'half')
    sizes = [(tmp_path / name / 'model.safetensors').stat().st_size for name in ('whole', 'half')]
    assert 0.45 < sizes[1] / sizes[0] < 0.65  # the names of the tensors take some, too

    loaded = load_image_tokenizer(tmp_path / 'half')
    for name, value in loaded.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, tokenizer.state_dict()[name]), name
    save_image_tokenizer(loaded, tmp_path / 'again')
    assert ((tmp_path / 'again' / 'model.safetensors').read_bytes()
            == (tmp_path / 'half' / 'model.safetensors').read_bytes())


def test_a_weight_that_float16_cannot_hold_is_told(tmp_path):
    tokenizer = tokenizer_of()
    with torch.no_grad():
        tokenizer.quant_conv.weight[0, 0] = 1e6
    with pytest.raises(CheckpointError, match=r'quant_conv\.weight reaches 1e\+06'):
        round_to_half(tokenizer)
    save_image_tokenizer(tokenizer, tmp_path)
    assert torch.equal(load_image_tokenizer(tmp_path).quant_conv.weight,
                       tokenizer.quant_conv.weight)


def test_metas_layout_is_read(tmp_path):
    tokenizer = tokenizer_of(ImageTokenizerConfig.from_dict(META_CONFIG))
    write_meta_layout(tmp_path, tokenizer)
    assert torch.equal(load_image_tokenizer(tmp_path).encode(frames()),
                       tokenizer.encode(frames()))


class Trap:
    """Pickles to code that would run on loading."""

    def __reduce__(self):
        return (exec, ('import builtins; builtins.trap_was_sprung = True',))


def test_a_checkpoint_with_code_in_it_is_not_unpickled(tmp_path):
    import builtins
    write_meta_layout(tmp_path, tokenizer_of(ImageTokenizerConfig.from_dict(META_CONFIG)),
                      callbacks=Trap())
    with pytest.raises(CheckpointError, match=r'vqgan\.ckpt.*not unpickled'):
        load_image_tokenizer(tmp_path)
    assert not hasattr(builtins, 'trap_was_sprung')


@pytest.mark.parametrize('zipped', [True, False])
def test_what_lightning_keeps_beside_the_weights_is_skipped(tmp_path, zipped):
    """Old files are no zip archives, and torch can map these alone into memory."""
    written = tokenizer_of(ImageTokenizerConfig.from_dict(META_CONFIG))
    write_meta_layout(tmp_path, written, zipped, epoch=3, callbacks={'best': torch.ones(1)},
                      optimizer_states=[{'state': {0: {'step': 1}}}], lr_schedulers=[])
    read = load_image_tokenizer(tmp_path).state_dict()
    assert all(torch.equal(read[name], value) for name, value in written.state_dict().items())


def test_a_checkpoint_with_other_objects_says_which_and_what_to_do(tmp_path):
    write_meta_layout(tmp_path, tokenizer_of(ImageTokenizerConfig.from_dict(META_CONFIG)),
                      hyper_parameters=Namespace(size=64))
    with pytest.raises(CheckpointError, match=r'vqgan\.ckpt holds argparse\.Namespace .*'
                                              r"torch\.save\(\{'state_dict'"):
        load_image_tokenizer(tmp_path)


def test_a_truncated_checkpoint_is_named(tmp_path):
    write_meta_layout(tmp_path, tokenizer_of(ImageTokenizerConfig.from_dict(META_CONFIG)))
    path = tmp_path / 'vqgan.ckpt'
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r'vqgan\.ckpt is truncated'):
        load_image_tokenizer(tmp_path)


def test_a_folder_without_tokenizer_says_what_was_expected(tmp_path):
    with pytest.raises(CheckpointError, match=r'vqgan\.yaml \+ vqgan\.ckpt'):
        load_image_tokenizer(tmp_path)


def test_attention_at_other_resolutions_is_refused():
    with pytest.raises(CheckpointError, match='attn_resolutions'):
        ImageTokenizerConfig.from_dict(
            META_CONFIG | {'ddconfig': META_CONFIG['ddconfig'] | {'attn_resolutions': [16]}})
    ImageTokenizerConfig.from_dict(
        META_CONFIG | {'ddconfig': META_CONFIG['ddconfig'] | {'attn_resolutions': [128]}})
    with pytest.raises(CheckpointError, match=r"lacks \['ch_mult'\]"):
        ImageTokenizerConfig.from_dict(
            {k: v for k, v in CONFIG.to_dict().items() if k != 'ch_mult'})


def test_a_square_frame_of_the_right_size_is_untouched():
    image = frames(1, 64, 64)[0]
    assert square_frame(image, 64) is image


@pytest.mark.parametrize('side', [100, 300, 480, 600])
def test_a_square_frame_is_resized_as_published(side):
    """How `resize_to_cover` resizes is compared with published sizes in test_golden_vectors."""
    image = frames(1, side, side)[0]
    resized = square_frame(image, 256)
    assert resized.shape == (256, 256, 3)
    np.testing.assert_array_equal(resized, resize_to_cover(image, (256, 256)))


@pytest.mark.parametrize('bad', [frames()[0], frames(1, 64, 64)[0, ..., 0],
                                 frames(1, 64, 64)[0].astype(float)])
def test_frames_that_are_no_square_rgb_image_are_refused(bad):
    with pytest.raises(FrameError):
        square_frame(bad, 64)


def test_large_images_are_averaged_in_blocks_first():
    image = np.zeros((512, 512, 3), np.uint8)
    image[::2] = 255
    assert np.unique(resize_to_cover(image, (256, 256))).tolist() == [128]
