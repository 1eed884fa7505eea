# SPDX-License-Identifier: Apache-2.0
"""Published success rates on LIBERO, to stand beside ours; what they were measured with.

Numbers of the public READMEs of WorldVLA and RynnVLA-002. Protocol of both: 10 tasks with 50
official initial states each, open-loop chunks, the simulator waits; a crash counts as a failure.
"""

from dataclasses import dataclass

from worldvla_sim.tasks import SUITES

EPISODES = 500
"""Per suite, from which the intervals of the published rates are computed."""


@dataclass(frozen=True)
class Baseline:
    """A published row."""

    name: str
    inputs: str  # what the policy sees
    rates: tuple[float, float, float, float]  # success rate of each of SUITES, 0 to 1
    checkpoint: str = 'published'
    assets: str = 'official'
    mode: str = 'lockstep in one process'

    def successes(self, suite: str) -> int:
        """Return how many of EPISODES a published rate stands for."""
        return round(self.rates[SUITES.index(suite)] * EPISODES)


_ALSO_WRIST = 'wrist camera and joint state, too'
BASELINES = (
    Baseline('WorldVLA (256 px)', '256 px', (0.856, 0.890, 0.826, 0.590)),
    Baseline('WorldVLA (512 px)', '512 px', (0.876, 0.962, 0.834, 0.600)),
    Baseline('RynnVLA-002, discrete', _ALSO_WRIST, (0.942, 0.968, 0.946, 0.876)),
    Baseline('RynnVLA-002, continuous', _ALSO_WRIST, (0.990, 0.998, 0.964, 0.944)),
)
"""In the order of SUITES: libero_spatial, libero_object, libero_goal, libero_10."""
