# SPDX-License-Identifier: Apache-2.0
"""Whether the labels of a store serve a run: those it asks for are there, and few saturate."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from worldvla_ros.errors import ConfigError
from worldvla_ros.policy.settings import PolicySettings
from worldvla_ros.training.settings import TrainConfig
from worldvla_ros.training.store import StoredEpisode, TokenStore

MOST_CLIPPED = 0.01  # of the labels of an axis, without a warning


def require_labels(config: TrainConfig, store: TokenStore, train: list[StoredEpisode]) -> None:
    """Raise ConfigError for an option that would do nothing with these episodes."""
    data, loss = config.data, config.loss
    for option, given, what, labels in (
            ('loss.aim_weight', loss.aim_weight > 0, "aims, which the simulator's expert records",
             store.aims),
            ('loss.reach_weight', loss.reach_weight > 0,
             "aims, which the simulator's expert records", store.aims),
            ('data.asked_repeats', data.asked_repeats > 1,
             'labels of chunks, which `collect --chunk` records', store.chunks)):
        if given and 'action' not in data.branches:
            raise ConfigError(f'{option} is of the action branch, and data.branches names '
                              f'{", ".join(data.branches)} alone; leave it out')
        if given and (labels is None
                      or not any(np.isfinite(labels[one.steps]).any() for one in train)):
            raise ConfigError(f'{option} is given, and no training episode of {data.store} has '
                              f'{what}; leave it out, or give another data.store')


def shares_outside(store: TokenStore, train: list[StoredEpisode], settings: PolicySettings
                   ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return which share of the labels and of the arm's states the tokens cannot say.

    Per axis of an action, (7,), and per value of the state, (7,) or (0,) if it is not read.
    """
    labels = _share_outside(store.labels_of(train, settings.horizon), settings.action_minimum,
                            settings.action_maximum)
    if settings.state_minimum is None or settings.state_maximum is None:
        return labels, np.zeros(0)
    return labels, _share_outside(np.concatenate([store.states[one.steps] for one in train]),
                                  settings.state_minimum, settings.state_maximum)


def _share_outside(rows: NDArray[np.float32], minimum: Sequence[float], maximum: Sequence[float]
                   ) -> NDArray[np.float64]:
    """Return which share of each column of the rows lies outside of its range."""
    low, high = (np.array(end, dtype=rows.dtype) for end in (minimum, maximum))
    return np.asarray(((rows < low) | (rows > high)).mean(0))
