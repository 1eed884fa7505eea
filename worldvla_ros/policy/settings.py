# SPDX-License-Identifier: Apache-2.0
"""policy.json of a checkpoint: how its model wants to be asked, and what it was trained for."""

from dataclasses import asdict, dataclass, fields
import json
from pathlib import Path

from worldvla_ros.errors import CheckpointError
from worldvla_ros.tokens.action_tokenizer import BIN_CHOICES, LIBERO_MAXIMUM, LIBERO_MINIMUM
from worldvla_ros.tokens.sequence import ACTION_PROMPT, WORLD_PROMPT

POLICY_FILE = 'policy.json'

IMAGE_BLOCK = 32  # [px] that a prompt counts the sides of an image in

_NEWER = {'chunk_mask': True, 'bin_choice': 'greedy', 'state_minimum': None,
          'state_maximum': None}
"""Settings that older files lack, as their checkpoints were trained."""


@dataclass(frozen=True)
class PolicySettings:
    """Everything beside the weights; config/model/ holds it for the released checkpoints."""

    name: str
    trained: bool  # False: random weights, good for tests of everything around them
    image_size: int = 256  # side of the square input [px]
    history_length: int = 2  # frames in the prompt, the newest included
    horizon: int = 5  # actions per chunk
    action_minimum: tuple[float, ...] = LIBERO_MINIMUM  # (7,) controller input
    action_maximum: tuple[float, ...] = LIBERO_MAXIMUM  # (7,) controller input
    state_minimum: tuple[float, ...] | None = None  # (7,) of `arm_state`; None: not read
    state_maximum: tuple[float, ...] | None = None
    action_prompt: str = ACTION_PROMPT
    world_prompt: str = WORLD_PROMPT
    chunk_mask: bool = True  # trained so that no action sees an earlier one of its chunk
    bin_choice: str = 'greedy'  # or 'mean': see model.decoded.choose_bins
    notes: str = ''  # data, licence and limits of the weights, for people

    def __post_init__(self) -> None:
        """Refuse values that no model can have."""
        if self.image_size < IMAGE_BLOCK or self.image_size % IMAGE_BLOCK:
            raise CheckpointError(f'image_size must be a multiple of {IMAGE_BLOCK} px, got '
                                  f'{self.image_size}')
        if self.history_length < 1 or self.horizon < 1:
            raise CheckpointError(f'history_length and horizon must be at least 1, got '
                                  f'{self.history_length} and {self.horizon}')
        if self.bin_choice not in BIN_CHOICES:
            raise CheckpointError(f'bin_choice must be one of {BIN_CHOICES}, got '
                                  f'{self.bin_choice!r}')
        if (self.state_minimum is None) != (self.state_maximum is None):
            raise CheckpointError('state_minimum and state_maximum go together: give both, or '
                                  'null for both')
        if self.action_prompt.count('{instruction}') != 1:
            raise CheckpointError('action_prompt must hold {instruction} once, got '
                                  f'{self.action_prompt!r}')

    @property
    def reads_state(self) -> bool:
        """Whether the arm's state is part of the prompt."""
        return self.state_minimum is not None

    @classmethod
    def load(cls, path: Path) -> 'PolicySettings':
        """Read a policy.json. Raises CheckpointError when it is missing, unknown or wrong."""
        if not path.is_file():
            raise CheckpointError(
                f'no {path}: it says image size, history, horizon and action range. For a '
                f'released WorldVLA checkpoint copy the right one of config/model/ there')
        try:
            entries = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise CheckpointError(f'cannot read {path}: {error}') from error
        known = {field.name for field in fields(cls)}
        if isinstance(entries, dict):
            entries = _NEWER | entries
        if not isinstance(entries, dict) or set(entries) != known:
            raise CheckpointError(f'{path}: expected an object with the keys {sorted(known)}, '
                                  f'got {sorted(entries)}')
        for name in ('action_minimum', 'action_maximum', 'state_minimum', 'state_maximum'):
            if entries[name] is not None or name.startswith('action'):
                entries[name] = tuple(entries[name])
        return cls(**entries)

    def save(self, path: Path) -> None:
        """Write a policy.json; inverse of `load`."""
        path.write_text(json.dumps(asdict(self), indent=2) + '\n')
