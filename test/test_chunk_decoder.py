# SPDX-License-Identifier: Apache-2.0
"""Which decoder a policy gets: weights in 8 bits reach the engine or are refused."""

import numpy as np
import pytest
from tiny_models import action_prompt, tiny_model
import torch

from worldvla_ros.errors import InferenceError
from worldvla_ros.model import chunk_decoder as module
from worldvla_ros.model.chunk_decoder import EagerChunkDecoder, checked_weights, chunk_decoder
from worldvla_ros.model.engine.chunk import StaticChunkDecoder
from worldvla_ros.model.engine.linear import DenseLinear, Fp8Linear
from worldvla_ros.model.transformer import Transformer

SHAPES = {'prompt_lengths': (30, 60), 'newest_rows': 15}


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Let models say that they are on a CUDA device, and build the engine on the CPU."""
    def build(model, *arguments, **options):
        with monkeypatch.context() as patch:
            patch.setattr(Transformer, 'device', torch.device('cpu'))
            return StaticChunkDecoder(model, *arguments, **options)
    monkeypatch.setattr(Transformer, 'device', torch.device('cuda'))
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (8, 9))
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda device: 'a card')
    monkeypatch.setattr(module, 'StaticChunkDecoder', build)


def test_on_a_cpu_passes_are_plain():
    for chunk_mask in (True, False):
        assert isinstance(chunk_decoder(tiny_model(), 5, **SHAPES, chunk_mask=chunk_mask,
                                        drafts=True), EagerChunkDecoder)


@pytest.mark.parametrize(('options', 'linear'), [
    ({}, DenseLinear), ({'weights': 'dense'}, DenseLinear), ({'weights': 'fp8'}, Fp8Linear)])
def test_the_weights_asked_for_reach_the_engine(as_on_a_gpu, options, linear):
    decoder = chunk_decoder(tiny_model(dtype=torch.bfloat16), 5, **SHAPES, **options)
    for layer in decoder._network._layers:
        assert {type(one) for one in (layer.qkv, layer.o, layer.gate_up, layer.down)} == {linear}


def test_drafts_reach_the_engine(as_on_a_gpu):
    prompt = action_prompt(np.random.default_rng(0), 1, (1, 2))
    for drafts in (False, True):
        decoder = chunk_decoder(tiny_model(), 5, **SHAPES, drafts=drafts)
        assert isinstance(decoder, StaticChunkDecoder)
        decoder.decode(prompt)
        assert (decoder.decode(prompt).passes < 7) == drafts


def test_eight_bits_on_a_cpu_are_refused():
    with pytest.raises(InferenceError, match=r"'fp8' need a CUDA device.* is cpu; use"):
        chunk_decoder(tiny_model(), 5, **SHAPES, weights='fp8')


def test_eight_bits_without_the_chunk_mask_are_refused(as_on_a_gpu):
    with pytest.raises(InferenceError, match=r"'fp8' need .*action-chunk mask.*use .*'dense'"):
        chunk_decoder(tiny_model(dtype=torch.bfloat16), 5, **SHAPES, chunk_mask=False,
                      weights='fp8')


def test_eight_bits_are_refused_by_older_cards_and_other_formats(as_on_a_gpu, monkeypatch):
    with pytest.raises(InferenceError, match=r"'fp8' need.* got a card and torch\.float32; use"):
        checked_weights('fp8', 'cuda', torch.float32)
    assert checked_weights('fp8', 'cuda', torch.bfloat16) == 'fp8'
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (8, 6))
    with pytest.raises(InferenceError, match=r'capability 8\.9 .* got a card and torch\.bfloat16'):
        checked_weights('fp8', 'cuda', torch.bfloat16)
    assert checked_weights('dense', 'cuda', torch.float32) == 'dense'


def test_weights_that_there_are_not_are_refused_with_those_that_there_are():
    with pytest.raises(InferenceError, match=r"\('dense', 'fp8'\), got 'int4'"):
        chunk_decoder(tiny_model(), 5, **SHAPES, weights='int4')
