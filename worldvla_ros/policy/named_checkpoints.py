# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that have a name instead of a folder: those of the package, and random weights."""

from pathlib import Path

SHIPPED = ('worldvla-mini', 'worldvla-mini-libero')
RANDOM = 'random'
NAMES = (*SHIPPED, RANDOM)

_CHECKPOINTS = Path(__file__).resolve().parent.parent / 'checkpoints'


def locate_checkpoint(name: str) -> str:
    """Return the folder that a name stands for; a folder or Hub id is returned as it is.

    The names of SHIPPED are the trained checkpoints that the package ships, 'random' a small one
    with seeded weights, made on first use.
    """
    if name in SHIPPED:
        return str(_CHECKPOINTS / name)
    if name == RANDOM:
        from worldvla_ros.policy.random_checkpoint import (  # imports torch
            ensure_random_checkpoint,
        )
        return str(ensure_random_checkpoint())
    return name
