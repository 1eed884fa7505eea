# SPDX-License-Identifier: Apache-2.0
"""A checkpoint in memory: what the policy and the world model both work with."""

from dataclasses import dataclass, replace
from functools import cached_property
import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from worldvla_ros.errors import CheckpointError, InstructionError, TokenError
from worldvla_ros.model.checkpoint import (
    CONFIG_FILE,
    load_model,
    pick_dtype,
    resolve_folder,
)
from worldvla_ros.model.checkpoint import (
    fingerprint as fingerprint,  # for the simulator, which may not import the model
)
from worldvla_ros.model.engine.frame import StaticFrameEncoder
from worldvla_ros.model.image_preprocessing import square_frame
from worldvla_ros.model.image_tokenizer import (
    ImageTokenizer,
    has_image_tokenizer,
    load_image_tokenizer,
    tokenizer_fingerprint,
)
from worldvla_ros.model.transformer import Transformer
from worldvla_ros.model.weight_files import (
    require_device as require_device,  # likewise
)
from worldvla_ros.policy.settings import POLICY_FILE, PolicySettings, settings_file
from worldvla_ros.tokens.action_tokenizer import ActionTokenizer
from worldvla_ros.tokens.sequence import PromptBuilder
from worldvla_ros.tokens.state_tokenizer import StateTokenizer
from worldvla_ros.tokens.text_tokenizer import TOKENIZER_FILE, TextTokenizer

IMAGE_TOKENIZER_FOLDER = 'image_tokenizer'
RELEASED_IMAGE_TOKENIZER = 'chameleon/tokenizer'
RELEASED_TEXT_TOKENIZERS = (
    'base_model/tokenizer.json', 'chameleon/base_model/tokenizer.json',
    'chameleon/tokenizer/tokenizer.json', 'chameleon/tokenizer/text_tokenizer.json')
"""Where the released repository keeps its tokenizers, once for all of its sub-folders.

The weights were trained with the base model's; Chameleon's own has the same vocabulary.
"""


def fingerprint_beside_weights(folder: Path) -> str:
    """Return a short name of the settings and tokenizers in a folder, of every byte of them.

    With `fingerprint` it names a policy: the same weights act otherwise with other ranges.
    """
    digest = hashlib.sha256()
    for file in (folder / CONFIG_FILE, folder / POLICY_FILE, folder / TOKENIZER_FILE,
                 *sorted((folder / IMAGE_TOKENIZER_FOLDER).rglob('*'))):
        if file.is_file():
            content = hashlib.sha256(file.read_bytes()).hexdigest()
            digest.update(f'{file.relative_to(folder)} {content}\n'.encode())
    return f'sha256:{digest.hexdigest()[:12]}'


def read_settings(path: str | Path, subfolder: str | None = None,
                  settings: str | Path | None = None) -> PolicySettings:
    """Return what `Pretrained.load` of the same arguments takes for settings."""
    return PolicySettings.load(
        settings_file(settings) if settings is not None
        else resolve_folder(path, subfolder, with_weights=False) / POLICY_FILE)


def _load_image_tokenizer(path: str | Path, described: Path, repository: Path, device: str
                          ) -> ImageTokenizer:
    """Load the image tokenizer beside the settings or, as released, of the whole repository.

    From the Hub every tokenizer comes with it, and no weights of the network.

    :param path: of the repository: a folder or Hub id.
    Raises CheckpointError that names both places where neither has one.
    """
    own, released = described / IMAGE_TOKENIZER_FOLDER, repository / RELEASED_IMAGE_TOKENIZER
    images = own if own.exists() else released
    try:
        resolve_folder(path, str(images.relative_to(repository)))  # patterns of a sub-folder
        if images == released and not has_image_tokenizer(released):
            raise CheckpointError(f'{released} lacks its files')
    except CheckpointError as error:
        raise CheckpointError(f'no image tokenizer for {path}: looked for {own} and {released}; '
                              f'{error}') from error
    return load_image_tokenizer(images, device)


def _require_its_own(tokenizer: ImageTokenizer, settings: PolicySettings, folder: Path) -> None:
    """Raise CheckpointError unless the model was trained with this image tokenizer."""
    expected = settings.image_tokenizer
    if expected is not None and (got := tokenizer_fingerprint(tokenizer)) != expected:
        raise CheckpointError(f'the image tokenizer of {folder} is {got}, {POLICY_FILE} says '
                              f'{expected}: codes of another one mean nothing to the model; put '
                              'back the one that it was trained with')


@dataclass(frozen=True, eq=False)
class Pretrained:
    """The networks, tokenizers and settings of one checkpoint."""

    model: Transformer
    image_tokenizer: ImageTokenizer
    text_tokenizer: TextTokenizer
    settings: PolicySettings
    fingerprint: str = 'never saved'  # short name of the weights, for logs

    def __post_init__(self) -> None:
        """Refuse tokenizers or settings that do not fit the vocabulary."""
        if self.settings.reads_state and not self.model.config.vocabulary.has_state:
            raise CheckpointError('policy.json has ranges of the state of the arm, and the '
                                  'vocabulary of the model has no tokens for it')
        step = 2 * self.image_tokenizer.factor
        if self.settings.image_size % step:
            raise CheckpointError(f'image_size of policy.json is {self.settings.image_size}, and '
                                  f'the image tokenizer takes multiples of {step} px')
        known, made = self.model.config.vocabulary.num_codes, self.image_tokenizer.config.n_embed
        if known != made:
            raise CheckpointError(f'the image tokenizer has {made} codes, the vocabulary of the '
                                  f'model {known}; expected those that were trained together')
        try:
            self.prompts.text_prefix('go')
            self.prompts.world_prefix()
            self.model.config.vocabulary.grid_token(self.grid_hw[0])
        except InstructionError as error:
            raise CheckpointError(f'the text tokenizer does not fit the model: {error}') from None
        except TokenError as error:
            raise CheckpointError(f'image_size of policy.json does not fit the model: {error}'
                                  ) from None
        grid, expected = self.model.config.image_grid, tuple(2 * side for side in self.grid_hw)
        if grid not in (None, expected):
            raise CheckpointError(f'the model knows places in images of {grid} codes, and '
                                  f'image_size {self.settings.image_size} of policy.json gives '
                                  f'{expected}; expected the size that it was trained at')

    @classmethod
    def load(cls, path: str | Path, *, subfolder: str | None = None, device: str = 'cpu',
             dtype: str = 'auto', num_actions: int | None = None,
             settings: str | Path | None = None) -> 'Pretrained':
        """Load a checkpoint folder or Hub id: ours, or the released repository's layout.

        Raises CheckpointError; for a device, settings and tokenizers that are missing or wrong
        before the weights are fetched.

        :param dtype: 'auto' is bfloat16 where the device multiplies it fast, else float32.
        :param num_actions: horizon, where it shall differ from the checkpoint's.
        :param settings: in place of the checkpoint's policy.json: another file, or a name of
            `settings.RELEASED` for released checkpoints, which have none.
        """
        require_device(device)
        described = resolve_folder(path, subfolder, with_weights=False)
        used = read_settings(described, settings=settings)  # a Hub is asked once
        if num_actions is not None:
            used = replace(used, horizon=num_actions)
        repository = (described, *described.parents)[len(Path(subfolder or '').parts)]
        image_tokenizer = _load_image_tokenizer(path, described, repository, device)
        _require_its_own(image_tokenizer, used, described)
        text_tokenizer = TextTokenizer.from_folder(
            described, *(repository / file for file in RELEASED_TEXT_TOKENIZERS))
        folder = resolve_folder(path, subfolder)
        return cls(model=load_model(folder, device=device, dtype=pick_dtype(dtype, device)),
                   image_tokenizer=image_tokenizer, text_tokenizer=text_tokenizer,
                   settings=used, fingerprint=fingerprint(folder))

    @property
    def prompts(self) -> PromptBuilder:
        """Builder of this checkpoint's prompts."""
        return PromptBuilder(self.text_tokenizer, self.model.config.vocabulary,
                             self.settings.action_prompt, self.settings.world_prompt)

    @property
    def action_tokenizer(self) -> ActionTokenizer:
        """Tokenizer with the statistics of this checkpoint's training actions."""
        return ActionTokenizer(self.settings.action_minimum, self.settings.action_maximum,
                               self.model.config.vocabulary)

    @property
    def state_tokenizer(self) -> StateTokenizer | None:
        """Tokenizer of the arm's state; None for a checkpoint that does not read it."""
        low, high = self.settings.state_minimum, self.settings.state_maximum
        if low is None or high is None:
            return None
        return StateTokenizer(low, high, self.model.config.vocabulary)

    @property
    def grid_hw(self) -> tuple[int, int]:
        """Size of the square input in blocks of two by two codes."""
        blocks = self.settings.image_size // (2 * self.image_tokenizer.factor)
        return blocks, blocks

    @property
    def description(self) -> str:
        """One line for logs: name, size, state of training, number format, fingerprint."""
        millions = sum(p.numel() for p in self.model.parameters()) / 1e6
        training = 'trained' if self.settings.trained else 'random weights'
        number_format = str(self.model.dtype).removeprefix('torch.')
        return (f'{self.settings.name}: {millions:.1f} M parameters, {training}, '
                f'{number_format} on {self.model.device}, {self.fingerprint}')

    def encode(self, image: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Return the code indices [2h, 2w] of a square RGB image, resized where needed."""
        return self._frame_encoder.encode(square_frame(image, self.settings.image_size))

    @cached_property
    def _frame_encoder(self) -> StaticFrameEncoder:
        return StaticFrameEncoder(self.image_tokenizer, self.settings.image_size)
