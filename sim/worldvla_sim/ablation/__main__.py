# SPDX-License-Identifier: Apache-2.0
"""`python -m worldvla_sim.ablation --config FILE`: all rows of the ablation, and their tables."""

import argparse
from collections.abc import Sequence
from pathlib import Path
import sys

from worldvla_ros.errors import WorldVLAError
from worldvla_sim.ablation.plan import load_plan
from worldvla_sim.ablation.report import dry_run_text, write_report
from worldvla_sim.ablation.run import Estimate, outcome, run_rows
from worldvla_sim.commands import (
    EXIT_ERRORS,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_USAGE,
    end_as_on_ctrl_c,
)
from worldvla_sim.libero_setup import resolve_assets


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m worldvla_sim.ablation',
        description='Train and evaluate the rows of an ablation; run again to go on. Writes '
                    'table.txt, .csv, .md and .png into its output folder.')
    parser.add_argument('--config', type=Path, default=Path('config/train/ablation.yaml'))
    parser.add_argument('--rows', type=lambda text: text.split(','),
                        help='such as action,full (default: all)')
    parser.add_argument('--dry-run', action='store_true',
                        help='say what would run and about how long, and run nothing')
    parser.add_argument('--report', action='store_true',
                        help='write the tables of what there is, and run nothing')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 when every row is finished, 1 if not, 2 for bad input, 130 on Ctrl-C."""
    options = _parser().parse_args(argv)
    try:
        plan = load_plan(options.config, options.rows)
        if not options.report:  # else rows would be trained and could not be played
            resolve_assets(plan.config.evaluation.assets)
        if options.dry_run:
            estimate = Estimate(plan)
            print(dry_run_text(plan, [(row, *estimate.left(row)) for row in plan.rows]))
            return EXIT_OK
        outcomes = ([outcome(row, plan) for row in plan.rows] if options.report
                    else run_rows(plan))
        print(write_report(outcomes, plan))
    except WorldVLAError as error:
        print(f'error: {error}', file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print('interrupted; the same command goes on, --report shows what there is',
              file=sys.stderr)
        return EXIT_INTERRUPTED
    return EXIT_OK if all(one.finished for one in outcomes) else EXIT_ERRORS


if __name__ == '__main__':
    end_as_on_ctrl_c()  # also of `kill`: its trainers are in sessions of their own
    sys.exit(main())
