# SPDX-License-Identifier: Apache-2.0
"""Train and evaluate the rows of the paper's ablations: `python -m worldvla_sim.ablation`."""
