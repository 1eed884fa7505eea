# SPDX-License-Identifier: Apache-2.0
"""What training adds to the network: dropout, less memory, faster attention."""

from functools import partial
import os
import shutil

import torch
from torch import Tensor, nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from worldvla_ros.model.transformer import MLP, Attention, Transformer
from worldvla_ros.training.failures import TrainingError
from worldvla_ros.training.freed_memory import keep_freed_memory

_MOST_SHAPES = 64  # that a layer is compiled for; after that it runs as it is


def add_dropout(model: Transformer, probability: float) -> None:
    """Drop values of what attention and feed-forward add to the residual stream, in training."""
    def drop(module: nn.Module, _: object, output: Tensor) -> Tensor:
        return F.dropout(output, probability, module.training)
    if probability > 0:
        for module in model.modules():
            if isinstance(module, Attention | MLP):
                module.register_forward_hook(drop)


def set_up_torch() -> None:
    """Set what holds for the whole process: once, before a network is trained."""
    keep_freed_memory()
    torch._dynamo.config.recompile_limit = _MOST_SHAPES  # for `compile_layers`


def fast_attention(model: Transformer, device: str) -> None:
    """Choose the attention that trains fastest, for the masks and lengths here.

    On the CPU plain matrix products beat the fused kernel, whose backward pass is slow.
    """
    if device == 'cpu':
        for module in model.modules():
            if isinstance(module, Attention):
                module.attend = _attend_by_products


# Compiled with the rest of a layer by torch 2.13 its gradient of k is NaN: in bfloat16, on a CPU
# with AMX, in sequences of 224 rows and not of 230.
@torch.compiler.disable  # type: ignore[untyped-decorator]  # lacks annotations
def _attend_by_products(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """As `attend`; a row that may attend to nothing, such as one of padding, has any result."""
    lowest = torch.finfo(q.dtype).min / 2  # finite: torch takes care of -inf, which takes time
    bias = (q.new_full((q.shape[2], k.shape[2]), lowest).triu(1) if bias is None
            else bias.clamp_min(lowest))
    with torch.autocast(q.device.type, enabled=False):  # its softmax would be in float32
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        return torch.softmax(scores + bias, dim=-1) @ v


def checkpoint_activations(model: Transformer) -> None:
    """Keep only the input of each layer, and compute it again in the backward pass."""
    for layer in model.model.layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def compile_layers(model: Transformer, device: str) -> None:
    """Fuse the operations of each layer; a GPU gets kernels for each shape that it meets.

    See `set_up_torch`. Raises TrainingError on a CPU without a C++ compiler.
    """
    compiler = os.environ.get('CXX', 'g++')  # what torch looks for
    if device == 'cpu' and shutil.which(compiler) is None:
        raise TrainingError(f'run.compile needs a C++ compiler, and there is no {compiler}; '
                            'install g++, name another with CXX, or set run.compile to false')
    for layer in model.model.layers:
        layer.compile(dynamic=None if device == 'cpu' else False)
