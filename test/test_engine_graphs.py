# SPDX-License-Identifier: Apache-2.0
"""What a CUDA graph could not record is found here, without a GPU."""

from contextlib import contextmanager, nullcontext
from unittest.mock import MagicMock

import numpy as np
import pytest
from tiny_models import action_prompt, tiny_model, world_prompt
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from worldvla_ros.model.engine.chunk import StaticChunkDecoder
from worldvla_ros.model.engine.graphs import Graphs
from worldvla_ros.model.engine.image import StaticImageRows
from worldvla_ros.model.image_decoding import decode_image_rows

aten = torch.ops.aten
# The first ones make the host wait for the device, the last brings a value from the host.
FORBIDDEN = {aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default,
             aten.unique_dim.default, aten._unique2.default, aten.lift_fresh.default}


class Recorded(TorchDispatchMode):
    """Refuses operations that a graph cannot hold, and lists the shapes of the others."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in FORBIDDEN, f'{func} inside a graph'
        self.calls.append((func, *(tuple(arg.shape) for arg in args if torch.is_tensor(arg))))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def recordings(monkeypatch):
    """Record every run of a graph under its key."""
    found = {}

    def run(self, key, function):
        with Recorded() as recorded:
            out = function()
        found.setdefault(key, []).append(recorded.calls)
        return out

    monkeypatch.setattr(Graphs, 'run', run)
    return found


@pytest.mark.parametrize('drafts', [False, True])
def test_graphs_of_chunks_hold_no_host_decision_and_are_the_same_for_every_prompt(recordings,
                                                                                  drafts):
    rng = np.random.default_rng(0)
    decoder = StaticChunkDecoder(tiny_model(), 5, prompt_buckets=(48, 80), newest_rows=15,
                                 drafts=drafts)
    for num_images in (1, 2, 3, 2, 1, 3):
        prompt = action_prompt(rng, num_images, (1, 2), num_text=int(rng.integers(4, 16)))
        decoder.decode(prompt)
        decoder.prefill(action_prompt(rng, num_images, (1, 2)))
        decoder.prefill(prompt[:-15])
        decoder.decode(prompt)
    assert len(recordings) == (8 if drafts else 6)
    for key, runs in recordings.items():
        assert len(runs) > 1, key
        assert all(run == runs[0] for run in runs), key


def test_graphs_of_images_hold_no_host_decision_and_are_always_the_same(recordings):
    rng = np.random.default_rng(1)
    rows = StaticImageRows(tiny_model(), 60, 30, 16)
    for _ in range(2):
        decode_image_rows(rows, world_prompt(rng, (3, 2)).tolist(), (3, 2), max_window=16,
                          draft=np.zeros((6, 4), np.int64))
    assert set(recordings) == {'prompt', 'window'}
    assert all(run == runs[0] for runs in recordings.values() for run in runs)


def test_captures_count_shapes_not_runs():
    graphs = Graphs(torch.device('cpu'))
    for key in ('a', 'b', 'a', 'a'):
        out, = graphs.run(key, lambda: (torch.ones(2),))
        assert torch.equal(out, torch.ones(2))
    assert graphs.captures == 2


def test_graphs_live_on_their_own_device_whatever_the_current_one_is(monkeypatch, caplog):
    """With a stand-in for CUDA that notes which device is current at each call."""
    current, seen = [0], {}

    @contextmanager
    def device(chosen):
        current.append(chosen.index)
        yield
        current.pop()

    def noted(name, result):
        def call(*args, **kwargs):
            seen[name] = current[-1]
            return result
        return call

    graph = MagicMock()
    graph.replay = noted('replay', None)
    for name, result in (('graph_pool_handle', (0, 0)), ('Stream', MagicMock()),
                         ('current_stream', MagicMock()), ('stream', nullcontext()),
                         ('CUDAGraph', graph), ('graph', nullcontext())):
        monkeypatch.setattr(torch.cuda, name, noted(name, result))
    monkeypatch.setattr(torch.cuda, 'device', device)

    caplog.set_level('INFO')
    one, graphs = torch.ones(1), Graphs(torch.device('cuda:1'))
    for _ in range(2):
        assert graphs.run('a', lambda: (one,)) == (one,)
    assert caplog.messages == ['captured the graph a']
    assert set(seen.values()) == {1} and len(seen) == 7
    assert current == [0]
