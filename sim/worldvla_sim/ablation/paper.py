# SPDX-License-Identifier: Apache-2.0
"""Success rates [%] of the paper's ablations (WorldVLA, arXiv 2506.21539), 50 episodes per task.

From its ablation table (rows 1 to 5), its table of history lengths and its table of world-model
pre-training. The history table names no suite; its two-frame entries are the libero_goal column
of rows 1 and 4, so it is taken for libero_goal. Video prediction is only drawn there: no numbers.
"""

from collections.abc import Mapping

LONG_NAMES = {'libero_goal': 'goal', 'libero_object': 'object', 'libero_spatial': 'spatial',
              'libero_10': 'long'}
"""The paper's names of the suites."""


def _all(goal: float, objects: float, spatial: float, long: float, average: float
         ) -> Mapping[str, float]:
    return {'goal': goal, 'object': objects, 'spatial': spatial, 'long': long,
            'average': average}


PAPER: Mapping[str, Mapping[str, float]] = {
    'action': _all(67.3, 82.9, 77.8, 23.0, 62.8),
    'action_world': _all(73.1, 88.0, 80.2, 27.3, 67.2),
    'chunk_unmasked': _all(79.6, 82.9, 36.7, 16.9, 54.0),
    'chunk_masked': _all(84.4, 90.9, 81.8, 49.3, 76.6),
    'full': _all(85.1, 90.9, 84.0, 52.4, 78.1),
    'history_1': {'goal': 74.0},
    'history_2': {'goal': 84.4},
    'history_4': {'goal': 84.7},
    'history_1_single': {'goal': 58.4},
    'history_2_single': {'goal': 67.3},
    'history_4_single': {'goal': 78.7},
    'world_pretraining': _all(73.1, 84.0, 79.8, 30.2, 66.8),
}
"""By row of the paper; 'single': without action chunking."""
