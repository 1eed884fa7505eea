# SPDX-License-Identifier: Apache-2.0
"""Gathering weights that are spread: one process of two, with a stand-in for the other."""

import weakref

import pytest
from tiny_models import tiny_model
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from worldvla_ros.training import parallel


@pytest.fixture(params=[0, 1])
def rank(request):
    dist.init_process_group('fake', store=FakeStore(), rank=request.param, world_size=2)
    yield request.param
    dist.destroy_process_group()


def spread_network():
    """Return a network whose weights are spread over two processes, and its optimizer."""
    mesh = init_device_mesh('cpu', (2,))
    network = torch.nn.Sequential(*(torch.nn.Linear(4, 6, bias=False) for _ in range(3)))
    for linear in network:
        linear.weight = torch.nn.Parameter(distribute_tensor(linear.weight, mesh, [Shard(0)]))
        linear.weight.grad = torch.ones_like(linear.weight)
    optimizer = torch.optim.AdamW(network.parameters())
    optimizer.step()
    return network, optimizer


def test_only_the_first_process_keeps_what_is_gathered(rank, monkeypatch):
    """Pins a bug: all tensors lay whole on every GPU at once."""
    network, optimizer = spread_network()
    gathered = []

    def whole(value):
        assert rank == 0 or all(one() is None for one in gathered), 'the one before is still there'
        result = value.full_tensor()
        gathered.append(weakref.ref(result))
        return result
    monkeypatch.setattr(parallel, 'whole', whole)

    weights = parallel.whole_state(network)
    moments = parallel.whole_optimizer_state(optimizer)['state']
    assert len(gathered) == 9  # weights, and both moments of each
    if rank == 0:
        assert [weight.shape for weight in weights.values()] == 3 * [(6, 4)]
        assert [moments[index]['exp_avg'].shape for index in range(3)] == 3 * [(6, 4)]
    else:
        assert weights == {} and moments == {0: {}, 1: {}, 2: {}}


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_no_weight_of_a_layer_stays_whole_between_its_passes(rank, dtype):
    """Pins a bug: autocast kept a copy in bfloat16 of every weight that had been gathered."""
    model = tiny_model()
    shapes = {shape for weight in model.model.layers.parameters() if weight.ndim == 2
              for shape in (weight.shape, weight.T.shape)}
    parallel.shard(model, model, 'cpu', dtype)
    kept = []

    def keep(tensor):
        kept.append(tensor)
        return tensor
    with (torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
          torch.autocast('cpu', dtype, enabled=dtype != torch.float32)):
        logits = model(torch.ones(1, 7, dtype=torch.int64))
    weights = [tensor for tensor in kept if tensor.shape in shapes]
    assert len(weights) >= 2 * 7 and {weight.dtype for weight in weights} == {dtype}
    assert all(weight.untyped_storage().nbytes() == 0 for weight in weights)
    logits.sum().backward()
    assert {weight.grad.dtype for weight in model.parameters()} == {torch.float32}


def test_layers_that_are_gathered_in_bfloat16_learn_what_autocast_learns():
    """In two parts of a batch, whose gradients are reduced with the second."""
    ids = torch.arange(1, 33).reshape(2, 16)

    def learned(spread):
        model = tiny_model()
        if spread:
            parallel.shard(model, model, 'cpu', torch.bfloat16)
        for apart in (True, False):
            with (parallel.gradients_kept_apart(model, apart),
                  torch.autocast('cpu', torch.bfloat16)):
                loss = model(ids).square().mean()
            loss.backward()
        return [loss.detach(), *(parallel.whole(weight.grad) for weight in model.parameters())]
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    try:
        torch.testing.assert_close(learned(spread=True), learned(spread=False), rtol=0, atol=0)
    finally:
        dist.destroy_process_group()


def test_rows_of_all_processes_come_together_however_many_each_has(rank, monkeypatch):
    """After a resume the first process has those of all, and the others have none yet."""
    def gather(found, rows):
        found[:] = [rows, [[3.0]]]
    monkeypatch.setattr(dist, 'all_gather_object', gather)
    assert parallel.rows_of_all([[1.0], [2.0]]) == [[1.0], [2.0], [3.0]]
