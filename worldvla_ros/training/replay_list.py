# SPDX-License-Identifier: Apache-2.0
"""Which demonstrations still succeed when their actions are replayed, in whole or filtered.

The published filter drops no-ops, and what is left need not replay: fingers take time to close.
`worldvla_sim.replay` writes the list and `worldvla_ros.training.tokenise` keeps to it, so that no
filtered demonstration is trained on whose replay fails.
"""

from dataclasses import asdict, dataclass, field
import hashlib
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from worldvla_ros.training.failures import DatasetError, explain_os_error
from worldvla_ros.training.samples import moving_steps
from worldvla_ros.whole_files import write_whole

FORMAT = 'worldvla_ros/replay/2'


@dataclass(frozen=True)
class Replay:
    """What became of one demonstration."""

    task: str  # as `task_name` says
    name: str  # 'demo_N'
    data: str  # `actions_digest` of its actions
    simulation: str  # assets and robot, in words
    success: bool  # after the last of the replayed actions
    steps: int
    kept: int  # of the steps, replayed
    error: str | None = None  # why it could not be replayed


@dataclass
class ReplayList:
    """The replays of a folder of demonstrations."""

    drop_no_ops: bool
    replays: list[Replay] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write JSON, whole or not at all; DatasetError when it cannot be written."""
        content = {'format': FORMAT, 'drop_no_ops': self.drop_no_ops,
                   'replays': [asdict(replay) for replay in self.replays]}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, lambda draft: draft.write_text(json.dumps(content, indent=1) + '\n'))
        except OSError as error:
            raise DatasetError(f'cannot write {path}: {explain_os_error(error)}') from error

    @classmethod
    def load(cls, path: Path) -> 'ReplayList':
        """Read a list; DatasetError when it is none."""
        try:
            content = json.loads(path.read_text())
            if content['format'] != FORMAT:
                raise ValueError(f'format {content["format"]!r}, expected {FORMAT!r}')
            return cls(content['drop_no_ops'], [Replay(**one) for one in content['replays']])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DatasetError(f'{path} is no list of replays: {error!r}; make one with '
                               '`python -m worldvla_sim.replay`') from error

    def find(self, task: str, name: str, data: str) -> Replay | None:
        """Return the replay of a demonstration with these actions, None if there is none."""
        for replay in self.replays:
            if (replay.task, replay.name, replay.data) == (task, name, data):
                return replay
        return None

    def succeeded(self, task: str, name: str, data: str) -> bool:
        """Return whether a demonstration replays; DatasetError if it was never tried."""
        replay = self.find(task, name, data)
        if replay is None or replay.error is not None:
            why = 'is not in the list' if replay is None else f'had an error ({replay.error})'
            raise DatasetError(f'{task}, {name} {why}, or its actions are others now; run '
                               '`python -m worldvla_sim.replay` again on the same folder')
        return replay.success


def kept_steps(actions: NDArray[np.floating], executed: NDArray[np.floating]
               ) -> NDArray[np.bool_]:
    """Return the steps (T,) that the published filter keeps for the label or what was executed."""
    return moving_steps(actions) | moving_steps(executed)


def trained_steps(task: str, name: str, actions: NDArray[np.floating],
                  executed: NDArray[np.floating], only: ReplayList | None, drop_no_ops: bool
                  ) -> NDArray[np.bool_]:
    """Return the steps (T,) of a successful demonstration that training data keeps, or none.

    :param only: and `drop_no_ops`: see `tokenise.filtered_episodes`.
    Raises DatasetError for a demonstration that is not among the replays.
    """
    if only is not None and not only.succeeded(task, name, actions_digest(actions, executed)):
        return np.zeros(len(actions), dtype=bool)
    return kept_steps(actions, executed) if drop_no_ops else np.ones(len(actions), dtype=bool)


def actions_digest(actions: NDArray[np.floating], executed: NDArray[np.floating]) -> str:
    """Return a short name of the actions (T, 7) of a demonstration, labels and executed."""
    both = np.stack([actions, executed]).astype(np.float64)
    return hashlib.sha256(both.tobytes()).hexdigest()[:12]
