# SPDX-License-Identifier: Apache-2.0
"""policy.json of a checkpoint: how its model wants to be asked, and what it was trained for."""

from dataclasses import asdict, dataclass, fields
import json
from pathlib import Path

from worldvla_ros.config import bounded, check, from_mapping
from worldvla_ros.datatypes import STATE_DIM
from worldvla_ros.errors import CheckpointError, ConfigError
from worldvla_ros.tokens.action_tokenizer import BIN_CHOICES, LIBERO_MAXIMUM, LIBERO_MINIMUM
from worldvla_ros.tokens.quantization import checked_range
from worldvla_ros.tokens.sequence import ACTION_PROMPT, WORLD_PROMPT
from worldvla_ros.tokens.vocab import VALUES_PER_ACTION

POLICY_FILE = 'policy.json'

RELEASED_FOLDER = Path(__file__).resolve().parent.parent / 'checkpoints' / 'released'
RELEASED = {file.stem: file for file in sorted(RELEASED_FOLDER.glob('*.json'))}
"""Settings of the released WorldVLA checkpoints, which have none of their own, by name."""

IMAGE_BLOCK = 32  # [px] that a prompt counts the sides of an image in

_NEWER = {'chunk_mask': True, 'bin_choice': 'greedy', 'state_minimum': None,
          'state_maximum': None, 'reads_wrist': False, 'world_stride': 1,
          'image_tokenizer': None}
"""Settings that older files lack, as their checkpoints were trained."""


@dataclass(frozen=True)
class PolicySettings:
    """Everything beside the weights; RELEASED holds it for the released checkpoints."""

    name: str
    trained: bool  # False: random weights, good for tests of everything around them
    image_size: int = bounded(256, minimum=IMAGE_BLOCK)  # side of the square input [px]
    history_length: int = bounded(2, minimum=1)  # frames in the prompt, the newest included
    horizon: int = bounded(5, minimum=1)  # actions per chunk
    action_minimum: tuple[float, ...] = LIBERO_MINIMUM  # (7,) controller input
    action_maximum: tuple[float, ...] = LIBERO_MAXIMUM  # (7,) controller input
    state_minimum: tuple[float, ...] | None = None  # (7,) of `arm_state`; None: not read
    state_maximum: tuple[float, ...] | None = None
    reads_wrist: bool = False  # each frame is followed by one of the wrist camera
    action_prompt: str = ACTION_PROMPT
    world_prompt: str = WORLD_PROMPT
    world_stride: int = bounded(1, minimum=1)  # most actions between two frames it imagines
    chunk_mask: bool = True  # trained so that no action sees an earlier one of its chunk
    bin_choice: str = bounded('greedy', choices=BIN_CHOICES)  # see model.decoded.choose_bins
    # Fingerprint of the image tokenizer that it was trained with; None: not known, not checked.
    image_tokenizer: str | None = None
    notes: str = ''  # data, licence and limits of the weights, for people

    def __post_init__(self) -> None:
        """Refuse values that no model can have. Raises CheckpointError naming them."""
        try:
            check(self)
            checked_range('action', VALUES_PER_ACTION, self.action_minimum, self.action_maximum)
            if self.state_minimum is not None and self.state_maximum is not None:
                checked_range('state', STATE_DIM, self.state_minimum, self.state_maximum)
        except ConfigError as error:
            raise CheckpointError(str(error)) from None
        if self.image_size % IMAGE_BLOCK:
            raise CheckpointError(f'image_size must be a multiple of {IMAGE_BLOCK} px, got '
                                  f'{self.image_size}')
        if (self.state_minimum is None) != (self.state_maximum is None):
            raise CheckpointError('state_minimum and state_maximum go together: give both, or '
                                  'null for both')
        if not _takes_the_instruction(self.action_prompt):
            raise CheckpointError('action_prompt must hold {instruction} once and nothing else in '
                                  f'braces, got {self.action_prompt!r}')

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
                f'released WorldVLA checkpoint copy its file from {RELEASED_FOLDER} there, or '
                f'let the node read it: settings:=NAME, one of {", ".join(RELEASED)}')
        try:
            entries = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise CheckpointError(f'cannot read {path}: {error}') from error
        known = {field.name for field in fields(cls)}
        if isinstance(entries, dict):
            entries = _NEWER | entries
        if not isinstance(entries, dict) or set(entries) != known:
            got = sorted(entries) if isinstance(entries, dict) else repr(entries)
            raise CheckpointError(f'{path}: expected an object with the keys {sorted(known)}, '
                                  f'got {got}')
        try:
            return from_mapping(cls, entries, where=str(path))
        except ConfigError as error:
            raise CheckpointError(str(error)) from None
        except CheckpointError as error:
            raise CheckpointError(f'{path}: {error}') from None

    def save(self, path: Path) -> None:
        """Write a policy.json; inverse of `load`."""
        path.write_text(json.dumps(asdict(self), indent=2) + '\n')


def settings_file(name: str | Path) -> Path:
    """Return the file that a name of RELEASED stands for; a path is returned as it is."""
    return RELEASED.get(str(name), Path(name))


def _takes_the_instruction(prompt: str) -> bool:
    try:
        return (prompt.count('{instruction}') == 1
                and prompt.format(instruction='go') == prompt.replace('{instruction}', 'go'))
    except (LookupError, ValueError, AttributeError):  # other fields, or braces left open
        return False
