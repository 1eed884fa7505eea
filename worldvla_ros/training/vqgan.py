# SPDX-License-Identifier: Apache-2.0
"""`python -m worldvla_ros.training.vqgan --config FILE`: train an image tokenizer, or go on.

    OUTPUT       the tokenizer, when it is finished
    OUTPUT.run   state.pt to resume from; metrics.csv and curves.png: PSNR of held-out frames, of
                 their moving pixels apart, and how the codebook is used

A run that was killed goes on from its last saved step, as if it had not been; Ctrl-C and SIGTERM
save the step that is being done.
"""

import argparse
from dataclasses import asdict
from pathlib import Path
import pickle
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
import torch
from tqdm import tqdm
import yaml

from worldvla_ros.config import differences, flatten, from_mapping, load_yaml
from worldvla_ros.errors import WorldVLAError
from worldvla_ros.model.image_tokenizer import round_to_half, save_image_tokenizer
from worldvla_ros.training.failures import TrainingError, explain_os_error
from worldvla_ros.training.frames import LoadedFrames, episodes_digest, load_frames
from worldvla_ros.training.loading import made_by_threads
from worldvla_ros.training.run_lock import alone_in
from worldvla_ros.training.stop_signals import StopSignals
from worldvla_ros.training.vqgan_quality import (
    QualityLog,
    ReconstructionQuality,
    perplexity,
    reconstruction_quality,
)
from worldvla_ros.training.vqgan_trainer import VqganRunConfig, VqganTrainer
from worldvla_ros.whole_files import rename_whole, write_whole

MAY_CHANGE = ('demonstrations', 'only', 'output', 'init_from', 'perceptual_weights',
              'save_every', 'evaluate_every', 'device', 'threads', 'loader_threads',
              'learning_rate', 'dtype')
"""What a resumed run may do otherwise: where things are, and how often they are looked at.

The demonstrations are known by their digest, wherever they are; and a run with the perceptual
loss stays one. The last two are what helps where the loss stops being finite.
"""
QUICK_FRAMES = 64  # that quality is measured on during training


class VqganRun:
    """The folder of a tokenizer's training; what is in it is whole."""

    def __init__(self, config: VqganRunConfig) -> None:
        """Refuse a tokenizer that exists; TrainingError. DatasetError without demonstrations."""
        self._config, self._output = config, Path(config.output)
        self.path = self._output.with_name(self._output.name + '.run')
        if self._output.exists():
            raise TrainingError(f'{self._output} exists; give another output, or delete it first')
        self._data = episodes_digest(Path(config.demonstrations), _only(config),
                                     wrist=config.wrist)

    def load(self) -> dict[str, Any] | None:
        """Return the saved state, None in a new run; TrainingError if it is another run's."""
        path = self.path / 'state.pt'
        if not path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(path, map_location='cpu', weights_only=True)
            entries = {'split': 'numeric',  # before there was a choice
                       **yaml.safe_load(state.pop('config'))}
            stored = flatten(from_mapping(VqganRunConfig, entries, where=str(path)))
        except (OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
            raise TrainingError(f'{path} cannot be read: {str(error).splitlines()[0]}; delete '
                                f'{self.path} to begin again') from error
        given = flatten(self._config)
        for values in (stored, given):
            values['with perceptual_weights'] = bool(values['perceptual_weights'])
        if changed := differences(stored, given, MAY_CHANGE):
            raise TrainingError(f'{self.path} holds a run of another configuration '
                                f'({"; ".join(changed)}); give another output, or restore the '
                                'values to resume it')
        data = state.pop('data', None) or ''
        if data.partition(':')[0] != self._data.partition(':')[0]:  # another kind of digest
            raise TrainingError(f'{path} is of an older version and does not say which '
                                f'demonstrations it is of; delete {self.path} to begin again')
        if data != self._data:
            raise TrainingError(f'{self.path} was trained on other demonstrations ({data}) than '
                                f'{self._config.demonstrations} has now ({self._data}); give '
                                'another output, or restore them to resume it')
        return state

    def save(self, trainer: VqganTrainer) -> None:
        """Replace the saved state; TrainingError on a full disk, with the old one kept."""
        content = {**trainer.state(), 'data': self._data,
                   'config': yaml.safe_dump(_plain(self._config))}
        try:
            write_whole(self.path / 'state.pt', lambda draft: torch.save(content, draft))
        except (OSError, RuntimeError) as error:  # torch reports a full disk as the latter
            reason = explain_os_error(error) if isinstance(error, OSError) else error
            raise TrainingError(f'cannot write {self.path}: {reason}; is the disk full? What was '
                                'saved before is whole') from error

    def finish(self, trainer: VqganTrainer) -> None:
        """Write the tokenizer and drop the state; the log and the curves stay."""
        draft = self.path / 'tokenizer'
        trainer.tokenizer.eval()
        if self._config.half:
            round_to_half(trainer.tokenizer)
        try:
            save_image_tokenizer(trainer.tokenizer, draft)
            rename_whole(draft, self._output)
        except OSError as error:
            raise TrainingError(f'cannot write {self._output}: {explain_os_error(error)}; what '
                                'was saved before is whole') from error
        except SafetensorError as error:  # how it reports a full disk
            raise TrainingError(f'cannot write {self._output}: {error}; is the disk full? What '
                                'was saved before is whole') from error
        (self.path / 'state.pt').unlink(missing_ok=True)


def train_vqgan(config: VqganRunConfig) -> ReconstructionQuality:
    """Train to the end, resuming a run; write the tokenizer, return its held-out quality."""
    torch.set_num_threads(config.threads)
    run = VqganRun(config)
    with alone_in(run.path):
        return _train_run(config, run)


def _train_run(config: VqganRunConfig, run: VqganRun) -> ReconstructionQuality:
    state = run.load()
    frames = load_frames(Path(config.demonstrations), config.image_size, config.most_frames,
                         config.split, wrist=config.wrist, only=_only(config))
    print(frames.counts.in_words(), file=sys.stderr)
    trainer = VqganTrainer(config)
    if not config.perceptual_weights:
        print('no perceptual_weights given: training without the perceptual loss',
              file=sys.stderr)
    if state is not None:
        trainer.restore(state)
        print(f'resuming at step {trainer.step} of {run.path}', file=sys.stderr)
    try:
        log = QualityLog(run.path, trainer.step)
        with StopSignals() as stop:
            _train(config, run, trainer, frames, log, stop)
        log.plot()
    except OSError as error:
        raise TrainingError(f'cannot write {run.path}: {explain_os_error(error)}') from error
    run.finish(trainer)
    return reconstruction_quality(trainer.tokenizer, frames.held_out)


def _train(config: VqganRunConfig, run: VqganRun, trainer: VqganTrainer,
           loaded: LoadedFrames, log: QualityLog, stop: StopSignals) -> None:
    """Train to the last step; what a step sees follows from its number.

    Raises KeyboardInterrupt after the step at which it is asked to stop, which is saved.
    """
    train = loaded.train

    def batch(step: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        rng = np.random.default_rng((config.seed, step))
        indices = rng.integers(len(train), size=config.batch_size)
        return train.frames[indices], train.moving(indices)

    steps = range(trainer.step, config.steps)
    bar = tqdm(total=config.steps, initial=trainer.step, unit='step', smoothing=0.05,
               dynamic_ncols=True, mininterval=1.0 if sys.stderr.isatty() else 30.0)
    with bar, made_by_threads(batch, steps, config.loader_threads) as upcoming:
        for frames, moving in upcoming:
            loss = trainer.train_step(frames, moving)
            bar.update()
            last = trainer.step == config.steps
            if last or trainer.step % config.evaluate_every == 0:
                quality = reconstruction_quality(trainer.tokenizer, loaded.held_out,
                                                 QUICK_FRAMES)
                log.write({'step': trainer.step, 'loss': loss, 'psnr': quality.psnr,
                           'moving_psnr': quality.moving_psnr,
                           'still_kept': quality.still_kept,
                           'held_out_codes': quality.used_codes,
                           'used_codes': int((trainer.usage > 0).sum()),
                           'perplexity': perplexity(trainer.usage),
                           'revived_codes': trainer.revived})
                tqdm.write(f'step {trainer.step}: loss {loss:.4f}, {quality.in_words}',
                           sys.stderr)
                trainer.usage.zero_()
                trainer.revived = 0
            stopping = stop.asked and not last
            if last or stopping or trainer.step % config.save_every == 0:
                run.save(trainer)
            if stopping:
                raise KeyboardInterrupt


def _only(config: VqganRunConfig) -> Path | None:
    return Path(config.only) if config.only else None


def _plain(config: VqganRunConfig) -> dict[str, Any]:
    """Return the configuration in lists and numbers, as YAML holds it."""
    entries = asdict(config)
    entries['network'] = {name: list(value) if isinstance(value, tuple) else value
                          for name, value in entries['network'].items()}
    return entries


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--config', type=Path, required=True, help='YAML file of the run')
    options = parser.parse_args(arguments)
    try:
        quality = train_vqgan(load_yaml(options.config, VqganRunConfig))
    except WorldVLAError as error:
        print(f'vqgan: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('vqgan: stopped; run the same command again to go on from the last saved step',
              file=sys.stderr)
        return 130
    print(f'held-out frames: {quality.in_words}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
