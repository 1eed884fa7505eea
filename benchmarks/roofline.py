# SPDX-License-Identifier: Apache-2.0
"""Least times of one H200: every weight and stored key read once per pass, every product once."""

from worldvla_ros.model.transformer import TransformerConfig
from worldvla_ros.tokens.vocab import VALUES_PER_ACTION

MATMUL_FLOPS = 790e12  # bfloat16, measured on random data
BANDWIDTH = 4.3e12  # [bytes/s], measured with a copy
BYTES = 2  # of a bfloat16 value


def body_parameters(config: TransformerConfig) -> int:
    """Return the weights of all layers, which every row is multiplied with."""
    return config.num_layers * (4 * config.hidden_size ** 2
                                + 3 * config.hidden_size * config.intermediate_size)


def prefill_ms(config: TransformerConfig, rows: int, cached: int = 0) -> float:
    """Return the time [ms] of the products of some rows after cached ones."""
    attended = rows * cached + rows ** 2 / 2
    flops = (2 * body_parameters(config) * rows
             + 4 * config.num_layers * config.hidden_size * attended)
    return 1e3 * flops / MATMUL_FLOPS


def step_ms(config: TransformerConfig, context: int) -> float:
    """Return the time [ms] of reading all weights and the keys and values of the context."""
    head = config.vocabulary.size * config.hidden_size
    stored = 2 * config.num_layers * config.hidden_size * context
    return 1e3 * BYTES * (body_parameters(config) + head + stored) / BANDWIDTH


def chunk_ms(config: TransformerConfig, prompt: int, num_actions: int, cached: int = 0) -> float:
    """Return the time [ms] of one chunk: the rest of the prompt with its BOAs, and six steps."""
    rows = prompt - cached + num_actions
    return (prefill_ms(config, rows, cached)
            + (VALUES_PER_ACTION - 1) * step_ms(config, prompt + num_actions))
