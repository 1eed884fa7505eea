# SPDX-License-Identifier: Apache-2.0
"""The folder of a run: checkpoints that appear whole or not at all, metrics, curves.

    checkpoints/step-00000500/   what WorldVLAPolicy.from_pretrained loads, and to resume from:
        trainer.pt  train.yaml   state of the optimizer and values for the next row of the
                                 metrics; the configuration of the run
    metrics.csv  curves.png      TensorBoard files too, where it is installed
    final/                       the result, bfloat16, files small enough for git
        train.yaml               the configuration of the run that made it

A run is resumed from its newest checkpoint, and only with the configuration that it began with.
Where it began from a checkpoint, train.yaml has the shape of that network, not the one asked for.
"""

from collections.abc import Callable, Mapping, Sequence
import csv
from dataclasses import asdict, replace
from pathlib import Path
import pickle
import shutil
from typing import Any

from safetensors import SafetensorError
import torch
import yaml

from worldvla_ros.config import differences, flatten, load_yaml
from worldvla_ros.errors import CheckpointError, ConfigError
from worldvla_ros.model.checkpoint import save_model
from worldvla_ros.model.image_tokenizer import save_image_tokenizer
from worldvla_ros.model.transformer import Transformer
from worldvla_ros.policy.pretrained import IMAGE_TOKENIZER_FOLDER, Pretrained
from worldvla_ros.policy.settings import POLICY_FILE
from worldvla_ros.training.decoding_error import ERRORS
from worldvla_ros.training.failures import TrainingError, explain_os_error
from worldvla_ros.training.settings import TrainConfig
from worldvla_ros.training.steps import learning_rate
from worldvla_ros.whole_files import draft_folder, rename_whole, write_whole_csv

MAX_SHARD_BYTES = 15_000_000  # of a result's files
KEPT_CHECKPOINTS = 2  # so that one is whole while the next is written
CONFIG_FILE, STATE_FILE, METRICS_FILE = 'train.yaml', 'trainer.pt', 'metrics.csv'
COLUMNS = ('step', 'split', 'total', 'cross_entropy', 'z_loss', 'action', 'world',
           'action_accuracy', 'world_accuracy', 'looking', 'reach', *ERRORS, 'grad_norm',
           'learning_rate', 'tokens_per_s', 'mfu')


def save_pretrained(pretrained: Pretrained, folder: Path, **options: Any) -> None:
    """Write what `Pretrained.load` reads; options are those of `save_model`."""
    save_model(pretrained.model, folder, **options)
    save_image_tokenizer(pretrained.image_tokenizer, folder / IMAGE_TOKENIZER_FOLDER)
    pretrained.text_tokenizer.save(folder)
    pretrained.settings.save(folder / POLICY_FILE)


_SHAPE = ('hidden_size', 'intermediate_size', 'num_layers', 'num_heads', 'tie_word_embeddings')
_INHERITED = ('data.action_range', *(f'model.{name}' for name in _SHAPE))
"""What the checkpoint that a run starts from decides; its shape alone, and all of it."""
_PLACES = 'model.image_places'
"""That one decides, too, if its network has them; else they may be asked for."""


def config_as_used(config: TrainConfig, pretrained: Pretrained) -> TrainConfig:
    """Return the configuration with what the checkpoint it starts from decided in its place."""
    if not config.model.init_from:
        return config
    network = pretrained.model.config
    shape = {name: getattr(network, name) for name in _SHAPE}
    return replace(config, model=replace(config.model, **shape,
                                         image_places=network.image_grid is not None),
                   data=replace(config.data, action_range='checkpoint'))


class RunFolder:
    """Reads and writes the files of one run."""

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self.path = Path(config.run.output)
        self._checkpoints = self.path / 'checkpoints'

    def latest(self) -> Path | None:
        """Return the newest checkpoint, None in a new run.

        Raises ConfigError if it is another run's, TrainingError if it does not say whose.
        """
        found = sorted(self._checkpoints.glob('step-*'))
        if not found:
            return None
        try:
            stored, given = self._stored(found[-1]), flatten(self._config)
        except ConfigError as error:
            raise _damaged(found[-1], error) from error
        fixed = _INHERITED if stored['model.init_from'] else ()
        if fixed and stored[_PLACES]:
            fixed = (*fixed, _PLACES)
        if changed := differences(stored, given, {*filter(_may_change, given), *fixed}):
            raise ConfigError(f'{self.path} holds a run of another configuration '
                              f'({"; ".join(changed)}); give another run.output, or restore the '
                              'values to resume it')
        return found[-1]

    def changes(self, checkpoint: Path) -> list[str]:
        """Say what of `run` is other than when a checkpoint was saved, a line each."""
        stored, given = self._stored(checkpoint), flatten(self._config)
        lines = differences(stored, given, [name for name in given if not name.startswith('run.')])
        step = int(checkpoint.name.rpartition('-')[2])
        before, now = (learning_rate(step, self._config.optimizer, settings['run.steps'])
                       for settings in (stored, given))
        if before != now:
            lines.append(f'the learning rate of the next step is {now:.3g}; it would have been '
                         f'{before:.3g}')
        return lines

    def _stored(self, checkpoint: Path) -> dict[str, Any]:
        return flatten(load_yaml(checkpoint / CONFIG_FILE, TrainConfig))

    def save(self, pretrained: Pretrained, state: Mapping[str, Any], step: int) -> Path:
        """Write the checkpoint of this step and drop the oldest; TrainingError on a full disk."""
        def write(folder: Path) -> None:
            save_pretrained(pretrained, folder)
            torch.save(dict(state), folder / STATE_FILE)
            self._write_config(folder, pretrained)
        target = write_folder(self._checkpoints / f'step-{step:08}', '.draft-', write)
        for old in sorted(self._checkpoints.glob('step-*'))[:-KEPT_CHECKPOINTS]:
            shutil.rmtree(old)
        return target

    def export(self, pretrained: Pretrained, max_shard_bytes: int = MAX_SHARD_BYTES) -> Path:
        """Write the result to `final`: bfloat16, in files of less than 16 MB."""
        half = replace(pretrained, model=_copied(pretrained.model, torch.bfloat16))

        def write(folder: Path) -> None:
            save_pretrained(half, folder, max_shard_bytes=max_shard_bytes)
            self._write_config(folder, pretrained)
        return write_folder(self.path / 'final', '.draft-final-', write)

    def _write_config(self, folder: Path, pretrained: Pretrained) -> None:
        used = config_as_used(self._config, pretrained)
        (folder / CONFIG_FILE).write_text(yaml.safe_dump(asdict(used)))


def write_folder(target: Path, prefix: str, write: Callable[[Path], None]) -> Path:
    """Write a folder under another name, then rename it; TrainingError where it cannot.

    :param prefix: of that name, and of this program alone, as of a run, see `alone_in`: what
        begins with it was left by a process that was killed while it wrote, and goes.
    """
    draft = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for left in target.parent.glob(f'{prefix}*'):
            shutil.rmtree(left, ignore_errors=True)
        draft = draft_folder(target.parent, prefix)
        write(draft)
        if target.exists():
            shutil.rmtree(target)
        rename_whole(draft, target)
    except OSError as error:
        raise TrainingError(f'cannot write {target}: {explain_os_error(error)}; what was '
                            'saved before is whole') from error
    except (SafetensorError, RuntimeError) as error:  # how the writers report a full disk
        raise TrainingError(f'cannot write {target}: {error}; is the disk full? What was '
                            'saved before is whole') from error
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)
    return target


def _may_change(name: str) -> bool:
    """Say whether a run may go on with another value.

    Moved data is known by fingerprint; what the run filled in is not asked for.
    """
    those = ('data.store', 'data.tokenizer', 'data.earlier_splits', 'model.init_from',
             'model.init_store')
    return name in those or (name.startswith('run.') and name != 'run.seed')


def _copied(model: Transformer, dtype: torch.dtype) -> Transformer:
    """Return a copy of a network in another dtype."""
    copy = Transformer(model.config)
    copy.load_state_dict(model.state_dict())
    return copy.to(dtype)


def load_state(checkpoint: Path) -> dict[str, Any]:
    """Read trainer.pt of a checkpoint; only tensors and plain values are unpickled."""
    path = checkpoint / STATE_FILE
    try:
        state: dict[str, Any] = torch.load(path, map_location='cpu', weights_only=True,
                                           mmap=True)  # each process reads what it needs of it
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise _damaged(checkpoint, f'{path} cannot be read: {error}') from error
    return state


def load_saved(checkpoint: Path) -> Pretrained:
    """Read the networks of a checkpoint of this run in float32; TrainingError if damaged."""
    try:
        return Pretrained.load(checkpoint, dtype='float32')
    except CheckpointError as error:
        raise _damaged(checkpoint, error) from error


def _damaged(checkpoint: Path, why: object) -> TrainingError:
    reason = (str(why) or repr(why)).splitlines()[0]
    return TrainingError(f'the checkpoint {checkpoint} is damaged or of another version '
                         f'({reason}); delete this folder to go on from the checkpoint before it')


class MetricsLog:
    """metrics.csv, and TensorBoard's files.

    :param tensorboard: None writes these where it is installed, True insists on them.
    """

    def __init__(self, folder: Path, resumed_at: int, tensorboard: bool | None = None) -> None:
        """Continue the log, without rows after the step that is resumed at."""
        self._board = _summary_writer(folder, resumed_at, tensorboard)
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / METRICS_FILE
        kept = [row for row in read_metrics(folder) if int(row['step']) <= resumed_at]
        write_whole_csv(self._path, COLUMNS, kept)

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Append one row: `step` optimizer steps were done."""
        shown = {name: f'{value:.6g}' for name, value in values.items()}
        with self._path.open('a', newline='') as file:
            csv.DictWriter(file, COLUMNS).writerow({'step': step, 'split': split, **shown})
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f'{split}/{name}', value, step)
            self._board.flush()  # so that a crash loses no more of it than of metrics.csv


def _summary_writer(folder: Path, resumed_at: int, wanted: bool | None) -> Any:
    """Return TensorBoard's writer, None without it; TrainingError where it is missed."""
    if wanted is False:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        if wanted is None:
            return None
        raise TrainingError('run.tensorboard is true, and tensorboard is not installed; pip '
                            'install -r requirements/optional/tensorboard.txt, or set it to '
                            'null') from error
    return SummaryWriter(str(folder), purge_step=resumed_at + 1)


def read_metrics(folder: Path) -> list[dict[str, str]]:
    """Return the rows of metrics.csv, none where there is no file.

    Without one that was cut off, as by a full disk.
    """
    path = folder / METRICS_FILE
    if not path.exists():
        return []
    return [row for row in csv.DictReader(path.read_text().splitlines())
            if None not in row.values()]


def plot_metrics(folder: Path) -> Path:
    """Draw curves.png: losses and accuracies of both branches, errors of decoded actions.

    What was not measured, as without held-out episodes, has no panel.
    """
    from matplotlib.figure import Figure
    rows = read_metrics(folder)
    panels = [(label, curves) for names, label in (
        (('action', 'world'), 'cross entropy [nat]'),
        (('action_accuracy', 'world_accuracy'), 'share of tokens that greedy gets right'),
        (ERRORS, "decoded actions against the expert's")) if (curves := _curves(rows, names))]
    figure = Figure(figsize=(5 * max(1, len(panels)), 4), layout='constrained')
    for number, (label, curves) in enumerate(panels, 1):
        axis = figure.add_subplot(1, len(panels), number)
        for name, (style, points) in curves.items():
            axis.plot(*zip(*points, strict=True), style, label=name)
        axis.set(xlabel='optimizer step', ylabel=label)
        axis.legend()
    figure.savefig(folder / 'curves.png', dpi=100)
    return folder / 'curves.png'


def _curves(rows: Sequence[Mapping[str, str]], names: Sequence[str]
            ) -> dict[str, tuple[str, list[tuple[int, float]]]]:
    """Return {name: (style, points of step and value)} of the curves that have points."""
    found = {}
    for name in names:
        for split, style in (('train', '-'), ('held_out', 'o--')):
            points = [(int(row['step']), float(row[name])) for row in rows
                      if row['split'] == split and row.get(name) not in (None, '', 'nan')]
            if points:
                found[f'{name}, {split}'] = style, points
    return found
