# SPDX-License-Identifier: Apache-2.0
"""What a stage of training was made with, noted beside it: its settings, data and beginning."""

import contextlib
from dataclasses import asdict
import json
from pathlib import Path

import yaml

from worldvla_ros.config import differences, flatten, load_yaml
from worldvla_ros.errors import WorldVLAError
from worldvla_ros.training.settings import TrainConfig
from worldvla_ros.training.store import TokenStore
from worldvla_sim.policies import checkpoint_name

_ORIGIN = '.origin'  # ending of the fingerprints, beside those of the settings


def note(stage: TrainConfig, file: Path) -> None:
    """Write the settings of a stage that is about to be trained, and if they are new its origin.

    :param file: YAML of the settings.
    """
    if not file.exists():
        file.with_suffix(_ORIGIN).write_text(json.dumps(_origin(stage)) + '\n')
    file.write_text(yaml.safe_dump(asdict(stage)))


def changes(stage: TrainConfig, file: Path) -> list[str]:
    """Say how a stage differs from the one that was noted, if there is one.

    A store or a checkpoint that is no longer there differs in nothing.
    """
    if not file.exists():
        return []
    changed = differences(flatten(load_yaml(file, TrainConfig)), flatten(stage))
    noted = file.with_suffix(_ORIGIN)
    before = json.loads(noted.read_text()) if noted.exists() else {}  # an older stage has none
    now = _origin(stage) if before else {}
    return changed + differences(before, now, before.keys() ^ now.keys())


def _origin(stage: TrainConfig) -> dict[str, str]:
    """Return fingerprints of a stage's data, and of what it starts from, where they are there."""
    found = {}
    with contextlib.suppress(WorldVLAError):
        found['content of data.store'] = TokenStore.open(stage.data.store).header.data
    if stage.model.init_from:
        with contextlib.suppress(WorldVLAError):
            found['content of model.init_from'] = checkpoint_name(stage.model.init_from)
    return found
