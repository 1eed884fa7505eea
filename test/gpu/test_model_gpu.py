# SPDX-License-Identifier: Apache-2.0
"""The model core on a CUDA device: the same tokens, and no host sync between the passes."""

from copy import deepcopy

import numpy as np
import pytest
from tiny_models import action_prompt, tiny_model, world_prompt
import torch

from worldvla_ros.model.engine.frame import StaticFrameEncoder
from worldvla_ros.model.generate import decode_chunk, generate_chunk, prefill
from worldvla_ros.model.image_decoding import decode_image
from worldvla_ros.model.image_tokenizer import ImageTokenizer
from worldvla_ros.model.vqgan import ImageTokenizerConfig

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(),
                                                  reason='needs a CUDA device')]


@pytest.fixture(autouse=True)
def full_precision():
    torch.backends.cuda.matmul.allow_tf32 = False


def test_chunks_on_the_gpu_equal_those_on_the_cpu():
    rng = np.random.default_rng(0)
    cpu, gpu = tiny_model(), tiny_model().cuda()
    for _ in range(20):
        prompt = action_prompt(rng, 2, (1, 2))
        assert torch.equal(generate_chunk(gpu, prompt, 5).cpu(), generate_chunk(cpu, prompt, 5))


def test_imagined_frames_on_the_gpu_equal_those_on_the_cpu():
    prompt = world_prompt(np.random.default_rng(1), (2, 2))
    expected = decode_image(tiny_model(), prompt, (2, 2)).codes
    codes = decode_image(tiny_model().cuda(), prompt, (2, 2)).codes
    assert torch.equal(codes.cpu(), expected)


def test_codes_and_pixels_on_the_gpu_are_those_of_the_cpu_without_tf32(monkeypatch):
    """TensorFloat-32, cuDNN's default, is off by a thousandth, and changes codes."""
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)
    config = ImageTokenizerConfig(embed_dim=16, n_embed=1024, z_channels=16, ch=64,
                                  ch_mult=(1, 1, 2, 2, 4), num_res_blocks=2, norm_groups=32)
    torch.manual_seed(0)
    cpu = ImageTokenizer(config).eval()
    torch.nn.init.normal_(cpu.quantize.embedding.weight, std=0.5)
    gpu = deepcopy(cpu).cuda()
    frames = torch.randint(0, 256, (4, 8, 8, 3), dtype=torch.uint8)
    frames = frames.repeat_interleave(32, 1).repeat_interleave(32, 2)
    latents, expected = gpu.latents(frames).cpu(), cpu.latents(frames)
    assert float((latents - expected).norm() / expected.norm()) < 1e-4
    codes = cpu.encode(frames)
    assert float((gpu.encode(frames).cpu() != codes).float().mean()) < 2e-3, 'but near ties'
    replayed = StaticFrameEncoder(gpu, frames.shape[1])
    for frame, eager in zip(frames, gpu.encode(frames), strict=True):
        alone = gpu.encode(frame[None])[0].cpu().numpy()
        np.testing.assert_array_equal(replayed.encode(frame.numpy()), alone)
        assert (alone != eager.cpu().numpy()).mean() < 2e-3, 'but near ties'
    pixels = gpu.decode(codes).cpu().int() - cpu.decode(codes).int()
    assert pixels.abs().max() <= 1


def test_the_newest_frame_path_equals_one_shot_on_the_gpu():
    rng = np.random.default_rng(2)
    model = tiny_model().cuda()
    cache = model.new_cache(256)
    for _ in range(20):
        prompt = action_prompt(rng, 2, (1, 2))
        prefill(model, prompt[:-15], cache)
        assert torch.equal(generate_chunk(model, prompt, 5, cache=cache),
                           generate_chunk(model, prompt, 5))


def test_the_host_waits_once_per_chunk(monkeypatch):
    """Only the copy of the prompt's ids to the device may synchronize."""
    model = tiny_model().cuda()
    prompt = action_prompt(np.random.default_rng(3), 2, (1, 2))
    decode_chunk(model, prompt, 5)  # warm up
    copy_to_device = torch.tensor

    def allowed_copy(*args, **kwargs):
        torch.cuda.set_sync_debug_mode('default')
        copied = copy_to_device(*args, **kwargs)
        torch.cuda.set_sync_debug_mode('error')
        return copied
    monkeypatch.setattr(torch, 'tensor', allowed_copy)
    torch.cuda.set_sync_debug_mode('error')
    try:
        decode_chunk(model, prompt, 5, cache=model.new_cache(256))
    finally:
        torch.cuda.set_sync_debug_mode('default')
