# SPDX-License-Identifier: Apache-2.0
"""`python -m worldvla_ros.training.train --config FILE`: train, or resume where it stopped.

Ctrl-C and SIGTERM save the step that is being done. `--export` then writes `final` as it is.
On several GPUs the same under torchrun: `torchrun --nproc-per-node 4 -m
worldvla_ros.training.train --config FILE`.
"""

import argparse
import os
from pathlib import Path
import signal
import sys

import torch
import torch.distributed as dist

from worldvla_ros.config import load_yaml
from worldvla_ros.errors import WorldVLAError
from worldvla_ros.training.earlier_splits import with_earlier_splits
from worldvla_ros.training.experiment import build_experiment
from worldvla_ros.training.failures import TrainingError, explain_os_error
from worldvla_ros.training.parallel import PATIENCE, end_process, pick_device
from worldvla_ros.training.run_folder import RunFolder, load_saved, plot_metrics
from worldvla_ros.training.run_lock import alone_in
from worldvla_ros.training.settings import TrainConfig
from worldvla_ros.training.trainer import Trainer


def train(config: TrainConfig) -> Path | None:
    """Train to the configured step, resuming a run in the same folder; return the result.

    Raises TrainingError where another program trains in that folder.
    """
    torch.set_num_threads(config.run.threads)
    folder = RunFolder(config)
    with alone_in(folder.path):
        checkpoint = folder.latest()
        experiment = build_experiment(config, checkpoint)
        trainer = Trainer(experiment, checkpoint)
        if not dist.is_initialized() or dist.get_rank() == 0:
            print(*filter(None, (experiment.split_report, experiment.label_report,
                                 experiment.range_report)), sep='\n', file=sys.stderr)
            if checkpoint is not None:
                print(f'resuming from {checkpoint}', *folder.changes(checkpoint), sep='\n  ',
                      file=sys.stderr)
        return trainer.run()


def export(config: TrainConfig) -> Path:
    """Write `final` and the curves from the newest checkpoint of a run; return `final`.

    Raises TrainingError where there is no checkpoint, or the run is being trained.
    """
    folder = RunFolder(config)
    checkpoint = folder.latest()
    if checkpoint is None:
        raise TrainingError(f'{folder.path} holds no checkpoint to export; train first (one is '
                            f'saved every {config.run.save_every} steps, and when you stop it)')
    with alone_in(folder.path):
        print(f'exporting {checkpoint.name} of {config.run.steps} steps', file=sys.stderr)
        folder = RunFolder(with_earlier_splits(config, checkpoint))
        result = folder.export(load_saved(checkpoint))
        plot_metrics(folder.path)
    return result


def with_others() -> bool:
    """Return whether torchrun started this process as one of several."""
    return int(os.environ.get('WORLD_SIZE', '1')) > 1


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--config', type=Path, required=True, help='YAML file of the run')
    parser.add_argument('--export', action='store_true',
                        help="do not train: write the result's folder `final`, in bfloat16, from "
                             'the newest checkpoint of the run, finished or not')
    options = parser.parse_args(arguments)
    terminated = signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C
    try:
        config = load_yaml(options.config, TrainConfig)
        if options.export:
            print(f'exported checkpoint: {export(config)}')
            return 0
        if with_others():
            device = pick_device(config.run.device)
            if device != 'cpu':
                torch.cuda.set_device(device)
            dist.init_process_group('gloo' if device == 'cpu' else 'nccl', timeout=PATIENCE)
        result = train(config)
    except WorldVLAError as error:
        print(f'train: {error}', file=sys.stderr)
        return 1
    except OSError as error:  # metrics and curves; checkpoints report their own
        print(f'train: {explain_os_error(error)}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('train: stopped; run the same command again to go on from the last checkpoint',
              file=sys.stderr)
        return 130
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        signal.signal(signal.SIGTERM, terminated)
    if result is not None:
        print(f'trained checkpoint: {result}')
    return 0


if __name__ == '__main__':
    exit_status = main()
    if with_others():
        end_process(exit_status)
    sys.exit(exit_status)
