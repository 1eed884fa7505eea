# SPDX-License-Identifier: Apache-2.0
"""Weights that a run begins with, and those that it adds to a checkpoint's.

What lies beside each other begins alike: bins, image codes, places of an image.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn
import torch.nn.functional as F

from worldvla_ros.model.image_places import NO_PLACE
from worldvla_ros.model.transformer import Transformer

_MOST_STATE_WAVES = 32  # over the range of a value of the state: the shortest is of 8 bins
_MOST_ACTION_WAVES = 16  # over the range of a value of an action
_MOST_PLACE_WAVES = 4  # over the height or width of an image: the shortest is of 3 codes in 12
_INIT_STD = 0.02  # of the weights, as usual for transformers of this family


def initialise(model: Transformer) -> None:
    """Draw the weights: normal, and smaller where a layer adds to the residual stream."""
    depth = 2 * model.config.num_layers
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and 'norm' not in name:
            adds = name.endswith(('o_proj.weight', 'down_proj.weight'))
            nn.init.normal_(parameter, std=_INIT_STD / depth ** 0.5 if adds else _INIT_STD)


@torch.no_grad()
def embed_codebook(model: Transformer, codebook: Tensor) -> None:
    """Start the rows of the image codes from their code vectors [num_codes, C], projected.

    Codes that look alike then begin alike, in the input and in the output layer, and what is
    learned of a frequent code serves the rare ones beside it. Ours: the public implementation
    starts from Chameleon, which knows its codes.
    """
    centred = codebook - codebook.mean(0)
    projection = torch.randn(codebook.shape[1], model.config.hidden_size)
    rows = _INIT_STD * F.normalize(centred, dim=-1) @ projection
    codes = model.config.vocabulary.codes
    for table in (model.model.embed_tokens, model.lm_head):
        table.weight[codes.start:codes.stop] = rows


@torch.no_grad()
def embed_state_bins(model: Transformer) -> None:
    """Start the input rows of the state's bins so that neighbouring bins are alike.

    The network then reads a measured value from the first step on, and need not learn 256
    unrelated words.
    """
    bins = model.config.vocabulary.state_bins
    model.model.embed_tokens.weight[bins.start:bins.stop] = _waves(
        len(bins), model.config.hidden_size, _MOST_STATE_WAVES)


@torch.no_grad()
def embed_action_bins(model: Transformer) -> None:
    """Start the rows of the action bins so that neighbouring bins are alike, in and out.

    What the network says then begins as a smooth distribution over the bins, and what moves one
    moves its neighbours. After 300 steps of 32 samples (text and state alone, libero_goal) the
    mean squared error of held-out translations was 0.057 instead of 0.079, ranges scaled to 1.
    """
    bins = model.config.vocabulary.bins
    for table in (model.model.embed_tokens, model.lm_head):
        table.weight[bins.start:bins.stop] = _waves(
            len(bins), model.config.hidden_size, _MOST_ACTION_WAVES)


def _waves(num_bins: int, size: int, most: int) -> Tensor:
    """Return rows [num_bins, size]: each column a random wave over the bins, most of them long."""
    frequency, phase = torch.rand(size) ** 2 * most, torch.rand(size)
    position = torch.arange(num_bins)[:, None] / num_bins
    return _INIT_STD * 2 ** 0.5 * torch.sin(2 * torch.pi * (position * frequency + phase))


@torch.no_grad()
def with_state_tokens(model: Transformer) -> Transformer:
    """Return the network with tokens of the arm's state, which no weight knows yet."""
    vocabulary = model.config.vocabulary
    if not vocabulary.has_state:
        known = model.state_dict()
        model = Transformer(replace(model.config, vocabulary=vocabulary.with_state()))
        initialise(model)
        weights = model.state_dict()
        for name, value in known.items():
            weights[name][:len(value)] = value
    embed_state_bins(model)
    return model


@torch.no_grad()
def embed_image_places(model: Transformer) -> None:
    """Start the embeddings of places in an image as waves over rows and columns.

    Neighbours begin alike, and what is learned of one place serves those beside it.
    """
    table, grid = model.model.embed_places, model.config.image_grid
    assert table is not None and grid is not None, 'a network that reads places'
    rows, columns = grid
    size = model.config.hidden_size
    down, across = _waves(rows, size - size // 2, _MOST_PLACE_WAVES), _waves(
        columns, size // 2, _MOST_PLACE_WAVES)
    table.weight[NO_PLACE] = 0.0
    table.weight[NO_PLACE + 1:] = torch.cat((
        down.repeat_interleave(columns, 0), across.repeat(rows, 1)), dim=1)


@torch.no_grad()
def with_image_places(model: Transformer, grid: tuple[int, int]) -> Transformer:
    """Return the network with embeddings of places, which no weight knows yet."""
    known = model.state_dict()
    model = Transformer(replace(model.config, image_grid=grid))
    embed_image_places(model)
    model.load_state_dict(known, strict=False)
    return model
