# SPDX-License-Identifier: Apache-2.0
"""Several processes train one network: each with all weights (DDP), or with a share (FSDP).

Whatever the weights are spread over, checkpoints hold them whole, so that a run may go on with
another number of processes, or alone.
"""

from collections.abc import Iterator, Mapping
import contextlib
from datetime import timedelta
import os
import sys
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from worldvla_ros.model.transformer import Transformer
from worldvla_ros.training.failures import TrainingError

PATIENCE = timedelta(hours=1)  # with a process that writes the checkpoint of a large network


def pick_device(name: str) -> str:
    """Return the torch device of this process; TrainingError for a GPU that is not there."""
    if name == 'cuda' and not torch.cuda.is_available():
        raise TrainingError("run.device is 'cuda', and torch finds none; use 'auto' or 'cpu'")
    if name == 'cpu' or not torch.cuda.is_available():
        return 'cpu'
    return f'cuda:{os.environ.get("LOCAL_RANK", "0")}'


def shard(loss: nn.Module, model: Transformer, device: str, dtype: torch.dtype) -> None:
    """Spread the weights of the model over all processes (FSDP2), layer by layer.

    :param loss: the module that is called, which holds the model; its other weights (embedding,
        norm, output layer) are gathered for the whole of its forward pass.
    :param dtype: of matrix products. The weights of a layer are gathered in it: autocast would
        keep a copy of each from the forward to the backward pass, which spreads nothing.
    """
    mesh = init_device_mesh(torch.device(device).type, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32,
                                  cast_forward_inputs=False)  # the residual stream is in float32
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(loss, mesh=mesh)


def replicate(loss: nn.Module) -> nn.Module:
    """Return the module with its gradients averaged over all processes (DDP)."""
    return nn.parallel.DistributedDataParallel(loss)


@contextlib.contextmanager
def gradients_kept_apart(loss: nn.Module, apart: bool) -> Iterator[None]:
    """Leave gradients to be averaged by a later backward pass, which saves the exchange."""
    if isinstance(loss, FSDPModule):
        loss.set_requires_gradient_sync(not apart)
        yield
    elif apart and isinstance(loss, nn.parallel.DistributedDataParallel):
        with loss.no_sync():
            yield
    else:
        yield


@contextlib.contextmanager
def others_wait() -> Iterator[None]:
    """Do what the first process does alone; all must enter it, and leave it together.

    Also when it fails there, so that the others do not wait for ever. One that ended before, with
    another status than 0, would have torchrun stop the first one in what it writes.
    """
    try:
        yield
    finally:
        if dist.is_initialized():
            _wait_for_all()


def _wait_for_all() -> None:
    if dist.get_backend() == 'nccl':
        dist.barrier(device_ids=[torch.cuda.current_device()])
    else:  # gloo's own barrier would keep the tensors of the last exchange until it is over
        dist.monitored_barrier(timeout=PATIENCE)


def end_process(status: int) -> NoReturn:
    """End a process that trained with others, with all that it has printed.

    Not by the end of the interpreter: PyTorch's caches of spread tensors keep the threads of gloo
    beyond destroy_process_group, and one that gives back a tensor while the interpreter ends
    aborts the process (pytorch/pytorch#190489).
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def mean_over_processes(rows: Tensor) -> Tensor:
    """Return the mean [N] of rows [M, N] of all processes that are not NaN; all must call it.

    A share of a batch may lack a branch, whose values are NaN then.
    """
    there = ~rows.isnan()
    sums = torch.stack([rows.nansum(0), there.sum(0).to(rows.dtype)])
    if dist.is_initialized():
        dist.all_reduce(sums)
    return sums[0] / sums[1]


def rows_of_all(rows: list[list[float]]) -> list[list[float]]:
    """Return the rows of all processes, one process after the other; all must call it."""
    if not dist.is_initialized():
        return rows
    gathered: list[list[list[float]]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, rows)
    return [row for of_one in gathered for row in of_one]


def whole(value: Tensor) -> Tensor:
    """Return a tensor with all its shares; every process must call it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def whole_state(module: nn.Module) -> dict[str, Any]:
    """Return the weights of a module, whole, in the first process; every process must call it."""
    return _gathered(module.state_dict())


def whole_optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the state of an optimizer, whole, in the first process; every process must call it.

    In the others it lacks the tensors.
    """
    state = optimizer.state_dict()
    return {**state, 'state': {index: _gathered(moments)
                               for index, moments in state['state'].items()}}


def _gathered(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values in the first process, nothing in the others.

    Tensors that are spread become whole one by one and go to the CPU: all of a large network
    would not fit beside its shares.
    """
    first = not dist.is_initialized() or dist.get_rank() == 0
    kept = {}
    for name, value in values.items():
        if isinstance(value, DTensor):
            value = whole(value).cpu() if first else whole(value)
        if first:
            kept[name] = value
    return kept


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load what `whole_optimizer_state` returned, each process its share."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group['params']]

    def share(index: int, value: Any) -> Any:
        parameter = parameters[index]
        if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
            return value  # the count of steps is a scalar
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh,
                                 parameter.placements)
    optimizer.load_state_dict({**state, 'state': {
        index: {name: share(index, value) for name, value in moments.items()}
        for index, moments in state['state'].items()}})
