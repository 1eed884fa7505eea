# SPDX-License-Identifier: Apache-2.0
"""The world model imagines what its prompt says, step after step."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
from tiny_models import attentive_model
import torch

from worldvla_ros.datatypes import Frame
from worldvla_ros.errors import CheckpointError, FrameError, InferenceError, TokenError
from worldvla_ros.model.engine.image import StaticImageRows
from worldvla_ros.model.image_decoding import decode_image
from worldvla_ros.model.image_tokenizer import ImageTokenizer
from worldvla_ros.model.vqgan import ImageTokenizerConfig
from worldvla_ros.policy.pretrained import Pretrained
from worldvla_ros.policy.settings import PolicySettings
from worldvla_ros.policy.world_model import WorldModel
from worldvla_ros.tokens.text_tokenizer import TextTokenizer
from worldvla_ros.training.initial_weights import with_image_places

ACTION = (0.1, 0, -0.2, 0, 0, 0, 1)
IMAGES = ImageTokenizerConfig(embed_dim=4, n_embed=64, z_channels=4, ch=4,
                              ch_mult=(1, 1, 2, 2, 2), num_res_blocks=1, norm_groups=4)


@pytest.fixture(scope='module')
def pretrained():
    text = TextTokenizer.train(['Generate the next image.'], 300)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        images = ImageTokenizer(IMAGES).eval()
        torch.nn.init.normal_(images.quantize.embedding.weight)
    return Pretrained(attentive_model(text.num_tokens), images, text,
                      PolicySettings('tiny', trained=False, image_size=64))


def frame(seed=0, size=64):
    image = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    return Frame(image, stamp_ns=1_000_000_000)


def test_a_step_imagines_the_frame_that_the_decoder_says(pretrained):
    world = WorldModel(pretrained)
    world.reset(frame())
    imagined = world.step(ACTION)
    prompt = pretrained.prompts.world(pretrained.encode(frame().image),
                                      pretrained.action_tokenizer.encode(ACTION))
    codes = decode_image(pretrained.model, prompt, (2, 2)).codes
    np.testing.assert_array_equal(imagined.codes, codes.numpy())
    np.testing.assert_array_equal(imagined.frame.image,
                                  pretrained.image_tokenizer.decode(codes[None])[0].numpy())
    assert imagined.entropy.shape == imagined.log_probs.shape == (4, 4)
    assert (imagined.log_probs <= 0).all()
    assert imagined.latency_s > 0


def test_stamps_advance_by_the_control_period(pretrained):
    world = WorldModel(pretrained, control_period_s=0.1)
    assert world.reset(frame()).stamp_ns == 1_000_000_000
    assert [world.step(ACTION).frame.stamp_ns for _ in range(2)] == [1_100_000_000, 1_200_000_000]


@pytest.mark.parametrize('reencode', [True, False])
def test_the_next_step_starts_from_the_imagined_frame(pretrained, reencode):
    world = WorldModel(pretrained, reencode=reencode)
    world.reset(frame())
    first, second = world.step(ACTION), world.step(ACTION)
    codes = pretrained.encode(first.frame.image) if reencode else first.codes
    prompt = pretrained.prompts.world(codes, pretrained.action_tokenizer.encode(ACTION))
    expected = decode_image(pretrained.model, prompt, (2, 2)).codes.numpy()
    np.testing.assert_array_equal(second.codes, expected)


@pytest.mark.parametrize('reencode', [True, False])
def test_with_a_stride_the_actions_since_a_frame_add_up_until_the_next_start(
        pretrained, reencode):
    settings = replace(pretrained.settings, world_stride=3)
    world = WorldModel(replace(pretrained, settings=settings), reencode=reencode)
    world.reset(frame())
    rollout = np.random.default_rng(0).uniform(-0.3, 0.3, (8, 7))
    imagined = [world.step(action) for action in rollout]
    start = pretrained.encode(frame().image)
    tokens = pretrained.action_tokenizer.encode(rollout)
    for step, found in enumerate(imagined):
        first = step - step % 3
        if step and step == first:
            before = imagined[step - 1]
            start = pretrained.encode(before.frame.image) if reencode else before.codes
        prompt = pretrained.prompts.world(start, tokens[first:step + 1])
        np.testing.assert_array_equal(found.codes,
                                      decode_image(pretrained.model, prompt, (2, 2)).codes)
    world.step(rollout[0])
    world.reset(frame())  # in the middle of a stride
    np.testing.assert_array_equal(world.step(rollout[0]).codes, imagined[0].codes)


def test_a_warm_up_is_forgotten(pretrained):
    cold, warm = WorldModel(pretrained), WorldModel(pretrained)
    warm.warm_up()
    with pytest.raises(InferenceError, match='no frame yet'):
        warm.step(ACTION)
    for world in (cold, warm):
        world.reset(frame())
    np.testing.assert_array_equal(warm.step(ACTION).codes, cold.step(ACTION).codes)


def test_the_same_actions_give_the_same_rollout(pretrained):
    world = WorldModel(pretrained)
    rollouts = []
    for _ in range(2):
        world.reset(frame(3))
        rollouts.append([world.step(np.full(7, value)).codes for value in (0.1, -0.3, 0.3)])
    np.testing.assert_array_equal(*rollouts)


def test_the_frame_before_is_the_draft_of_the_next(pretrained):
    world = WorldModel(pretrained, reencode=False)
    world.reset(frame())
    passes = []
    for _ in range(8):
        before, after = world.step(ACTION), world.step(ACTION)
        prompt = pretrained.prompts.world(before.codes, pretrained.action_tokenizer.encode(ACTION))
        drafted = decode_image(pretrained.model, prompt, (2, 2), draft=before.codes)
        passes.append(after.passes)
        assert after.passes == drafted.passes
    assert min(passes) < 16, 'some code stays the same in a frame of 16'


def test_drafts_change_no_frame_and_can_be_turned_off(pretrained):
    drafted, plain = WorldModel(pretrained), WorldModel(pretrained, drafts=False)
    for world in (drafted, plain):
        world.reset(frame(7))
    for _ in range(4):
        one, other = drafted.step(ACTION), plain.step(ACTION)
        np.testing.assert_array_equal(one.codes, other.codes)
        assert one.passes <= other.passes == 16


def test_the_action_enters_the_prompt(pretrained):
    world, results = WorldModel(pretrained), []
    for value in (-0.3, 0.3):
        world.reset(frame())
        results.append(world.step(np.full(7, value)).codes)
    assert (results[0] != results[1]).any()


def test_a_large_frame_is_resized(pretrained):
    assert WorldModel(pretrained).reset(frame(size=128)).image.shape == (64, 64, 3)


def test_a_picture_that_is_a_view_of_bgr_is_taken(pretrained):
    """Pins a bug: torch takes no negative strides, as pictures of bgr8 and jpeg have."""
    one = frame()
    view = replace(one, image=one.image[..., ::-1].copy()[..., ::-1])
    np.testing.assert_array_equal(pretrained.encode(view.image), pretrained.encode(one.image))
    assert WorldModel(pretrained).reset(view).image.shape == (64, 64, 3)


def test_places_in_images_of_another_size_are_refused(pretrained):
    """Pins a bug: a smaller image_size in policy.json moved the robot with wrong places."""
    model = with_image_places(pretrained.model, (4, 4))
    fitting = replace(pretrained, model=model)
    with pytest.raises(CheckpointError, match=r'images of \(4, 4\) codes.*32.*\(2, 2\)'):
        replace(fitting, settings=replace(fitting.settings, image_size=32))


def test_an_image_tokenizer_of_another_model_is_refused(pretrained):
    other = ImageTokenizer(replace(IMAGES, n_embed=32))
    with pytest.raises(CheckpointError, match=r'has 32 codes.* 64'):
        replace(pretrained, image_tokenizer=other)


@pytest.mark.parametrize('engine', [False, True])
def test_nan_is_reported_and_gone_with_its_frame(pretrained, monkeypatch, engine):
    if engine:  # as on a GPU
        monkeypatch.setattr('worldvla_ros.policy.world_model.image_rows',
                            lambda model, length, _: StaticImageRows(model, length + 3, 20, 16))
    codes = [set(pretrained.encode(frame(seed).image).ravel().tolist()) for seed in (0, 1)]
    model = deepcopy(pretrained.model)
    with torch.no_grad():
        model.model.embed_tokens.weight[
            model.config.vocabulary.code_start + min(codes[0] - codes[1])] = torch.nan
    # The imagined codes may hold the bad one: each world imagines one frame of a clean one.
    spoiled, fresh = (WorldModel(replace(pretrained, model=model), drafts=False)
                      for _ in range(2))
    spoiled.reset(frame(0))
    for _ in range(2):
        with pytest.raises(InferenceError, match='NaN for this observation'):
            spoiled.step(ACTION)
    for world in (spoiled, fresh):
        world.reset(frame(1))
    one, other = spoiled.step(ACTION), fresh.step(ACTION)
    np.testing.assert_array_equal(one.codes, other.codes)
    np.testing.assert_array_equal(one.entropy, other.entropy)
    assert one.frame.stamp_ns == other.frame.stamp_ns


def test_misuse_is_refused(pretrained):
    world = WorldModel(pretrained)
    with pytest.raises(InferenceError, match='reset'):
        world.step(ACTION)
    with pytest.raises(FrameError, match='square'):
        world.reset(Frame(np.zeros((64, 96, 3), np.uint8), 0))
    world.reset(frame())
    with pytest.raises(TokenError, match='NaN'):
        world.step([np.nan] * 7)
    with pytest.raises(TokenError, match='7 values'):
        world.step([0.0] * 6)
    with pytest.raises(TokenError, match=r'expected one action \(7,\), got .* \(2, 7\)'):
        world.step(np.zeros((2, 7)))
