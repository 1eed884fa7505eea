# SPDX-License-Identifier: Apache-2.0
"""What a training step follows from: its number gives its learning rate and its random numbers."""

import math

import numpy as np

from worldvla_ros.training.settings import OptimizerConfig


def learning_rate(step: int, config: OptimizerConfig, steps: int) -> float:
    """Return the learning rate of a step from 0: linear warm-up, then constant or cosine."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == 'constant':
        return config.learning_rate
    progress = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.learning_rate * (config.final_share + (1 - config.final_share) * cosine)


def seed_of(*numbers: int) -> int:
    """Return a seed for `torch.manual_seed`, the same in every Python, from such as seed and step.

    Numbers that differ by one give seeds that have nothing in common.
    """
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
