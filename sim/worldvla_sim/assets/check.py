# SPDX-License-Identifier: Apache-2.0
"""Check the asset pack against all forty tasks: `python -m worldvla_sim.assets.check`.

Prints one line per task, below it what moves while the scene settles, and exits with 1 when
anything does not fit and nothing explains it.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
import sys
import time
from typing import Any

from worldvla_ros.errors import SimulationError
from worldvla_sim.assets.acceptance import (
    EXPECTED_FILE,
    Finding,
    layout_misfits,
    load_expectations,
    settle_findings,
)
from worldvla_sim.assets.forced_goal import force_goal
from worldvla_sim.commands import parse_indices, telling
from worldvla_sim.libero_env import LiberoEnv
from worldvla_sim.tasks import SUITES, suite_tasks


def check_task(
    suite: str, task: int, *, assets: str, init_states: list[int], expected: Mapping[str, Any],
) -> list[Finding]:
    """Return what does not fit in one task, and what moves but is explained."""
    with LiberoEnv(suite, task, assets=assets, render=False) as env:
        env.reset(init_states[0])
        findings = [Finding(text, None) for text in layout_misfits(env, expected)]
        for state in init_states:
            findings += settle_findings(env, state, expected)
        env.reset(init_states[0])
        if not force_goal(env):
            findings.append(Finding(f'{env.goal} does not hold when it is brought about', None))
        return findings


@telling
def main(arguments: list[str] | None = None) -> int:
    """Run the checks that the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--suite', choices=SUITES, action='append', help='default: all four')
    parser.add_argument('--init-states', type=parse_indices, default=[0, 17, 34],
                        help='official states to settle, e.g. 0,17,34')
    parser.add_argument('--assets', default='builtin', choices=('builtin', 'official'))
    parser.add_argument('--expected', type=Path, default=EXPECTED_FILE)
    options = parser.parse_args(arguments)
    expected = load_expectations(options.expected)
    bad = 0
    for suite in options.suite or SUITES:
        for task in suite_tasks(suite):
            start = time.monotonic()
            try:
                findings = check_task(suite, task.index, assets=options.assets,
                                      init_states=options.init_states, expected=expected)
            except SimulationError as error:
                findings = [Finding(str(error), None)]
            misfit = any(finding.explanation is None for finding in findings)
            bad += misfit
            print(f'{suite:15s} {task.index} {"MISFIT" if misfit else "fits":6s} '
                  f'{time.monotonic() - start:4.1f} s  {task.instruction}', flush=True)
            for text, explanation in findings:
                print(f'    {text}' + (f': {explanation}' if explanation else ''), flush=True)
    print(f'{bad} tasks do not fit' if bad else 'all tasks fit')
    return 1 if bad else 0


if __name__ == '__main__':
    sys.exit(main())
