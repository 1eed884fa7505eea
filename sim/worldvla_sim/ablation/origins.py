# SPDX-License-Identifier: Apache-2.0
"""What a stage of training was made with, noted beside it: its settings, data and beginning."""

from collections.abc import Iterator
import contextlib
from dataclasses import asdict
from functools import partial
import json
from pathlib import Path

import yaml

from worldvla_ros.config import differences, flatten, load_yaml
from worldvla_ros.errors import ConfigError, WorldVLAError
from worldvla_ros.training.settings import TrainConfig
from worldvla_ros.training.store import TokenStore
from worldvla_ros.whole_files import write_whole
from worldvla_sim.ablation.failures import AblationError
from worldvla_sim.policies import checkpoint_name

_ORIGIN = '.origin'  # ending of the fingerprints, beside those of the settings


def note(stage: TrainConfig, file: Path) -> None:
    """Write the origin and the settings of a stage that is about to be trained.

    What is noted stays: `changes` compares with it.

    :param file: YAML of the settings.
    """
    if file.exists():
        return
    for path, text in ((file.with_suffix(_ORIGIN), json.dumps(_origin(stage)) + '\n'),
                       (file, yaml.safe_dump(asdict(stage)))):
        write_whole(path, partial(Path.write_text, data=text))


def changes(stage: TrainConfig, file: Path) -> list[str]:
    """Say how a stage differs from the one that was noted, if there is one.

    A store or a checkpoint that is no longer there differs in nothing.

    Raises AblationError for a note that cannot be read.
    """
    if not file.exists():
        return []
    with _readable(file):
        changed = differences(flatten(load_yaml(file, TrainConfig)), flatten(stage))
    noted = file.with_suffix(_ORIGIN)
    with _readable(noted):
        before = json.loads(noted.read_text()) if noted.exists() else {}  # older: it has none
    now = _origin(stage) if before else {}
    return changed + differences(before, now, before.keys() ^ now.keys())


@contextlib.contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except (ConfigError, OSError, ValueError) as error:
        raise AblationError(f'the note {file} is damaged or of another version ({error}); delete '
                            'it to go on with its row') from error


def _origin(stage: TrainConfig) -> dict[str, str]:
    """Return fingerprints of a stage's data, and of what it starts from, where they are there."""
    found = {}
    with contextlib.suppress(WorldVLAError):
        found['content of data.store'] = TokenStore.open(stage.data.store).header.data
    if stage.model.init_from:
        with contextlib.suppress(WorldVLAError):
            found['content of model.init_from'] = checkpoint_name(stage.model.init_from)
    return found
