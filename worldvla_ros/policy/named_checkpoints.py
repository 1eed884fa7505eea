# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that have a name instead of a folder: the one of the package, and random weights."""

from pathlib import Path

from worldvla_ros.policy.random_checkpoint import ensure_random_checkpoint

SHIPPED = 'worldvla-mini'
RANDOM = 'random'
NAMES = (SHIPPED, RANDOM)

_CHECKPOINTS = Path(__file__).resolve().parent.parent / 'checkpoints'


def locate_checkpoint(name: str) -> str:
    """Return the folder that a name stands for; a folder or Hub id is returned as it is.

    'worldvla-mini' is the trained checkpoint that the package ships, 'random' a small one with
    seeded weights, made on first use.
    """
    if name == SHIPPED:
        return str(_CHECKPOINTS / SHIPPED)
    if name == RANDOM:
        return str(ensure_random_checkpoint())
    return name
