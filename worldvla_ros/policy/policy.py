# SPDX-License-Identifier: Apache-2.0
"""From camera frames and an instruction to a chunk of robot actions. Start reading here.

    frames --image tokenizer--> code indices --prompt builder--> prompt ids
           --decode_chunk--> action tokens --action tokenizer--> ActionChunk

The robot's limits are not known here: what a chunk may do is the safety stage's decision.
"""

from dataclasses import replace
from pathlib import Path
import time

import numpy as np
from numpy.typing import NDArray
import torch

from worldvla_ros.datatypes import ActionChunk, Frame, LatencySplit, Observation
from worldvla_ros.errors import FrameError
from worldvla_ros.model.checkpoint import fingerprint, load_model, pick_dtype, resolve_folder
from worldvla_ros.model.generate import chunk_capacity, decode_chunk, prefill
from worldvla_ros.model.image_preprocessing import square_frame
from worldvla_ros.model.image_tokenizer import ImageTokenizer, load_image_tokenizer
from worldvla_ros.model.transformer import Transformer
from worldvla_ros.policy.settings import PolicySettings
from worldvla_ros.tokens.action_tokenizer import ActionTokenizer
from worldvla_ros.tokens.sequence import PromptBuilder, image_block
from worldvla_ros.tokens.text_tokenizer import TextTokenizer

MAX_TEXT_TOKENS = 192  # room for the instruction in the KV cache; longer ones are refused
IMAGE_TOKENIZER_FOLDER = 'image_tokenizer'


class WorldVLAPolicy:
    """A WorldVLA checkpoint that turns observations into action chunks.

    Not thread-safe: one thread owns it, as one thread owns the device.
    """

    def __init__(self, model: Transformer, image_tokenizer: ImageTokenizer,
                 text_tokenizer: TextTokenizer, settings: PolicySettings,
                 fingerprint: str = 'in memory') -> None:
        """Put the parts together; `from_pretrained` reads them from a checkpoint."""
        vocabulary = model.config.vocabulary
        self.settings = settings
        self._model = model
        self._image_tokenizer = image_tokenizer
        self._action_tokenizer = ActionTokenizer(settings.action_minimum,
                                                 settings.action_maximum, vocabulary)
        self._prompts = PromptBuilder(text_tokenizer, vocabulary, settings.action_prompt,
                                      settings.world_prompt)
        self._fingerprint = fingerprint
        self._recent_codes: list[tuple[NDArray[np.uint8], NDArray[np.int64]]] = []
        side = settings.image_size // image_tokenizer.factor
        image_tokens = len(image_block(np.zeros((side, side)), vocabulary))
        longest = 2 + MAX_TEXT_TOKENS + settings.history_length * image_tokens
        self._cache = model.new_cache(chunk_capacity(longest, settings.horizon))

    @classmethod
    def from_pretrained(cls, path: str | Path, *, subfolder: str | None = None,
                        device: str = 'cpu', dtype: str | torch.dtype = 'auto',
                        num_actions: int | None = None) -> 'WorldVLAPolicy':
        """Load a checkpoint folder or Hub id.

        :param dtype: 'auto' is bfloat16 where the device multiplies it fast, else float32.
        :param num_actions: horizon, where it shall differ from the checkpoint's.
        """
        folder = resolve_folder(path, subfolder)
        settings = PolicySettings.load(folder)
        if num_actions is not None:
            settings = replace(settings, horizon=num_actions)
        return cls(load_model(folder, device=device, dtype=pick_dtype(dtype, device)),
                   load_image_tokenizer(folder / IMAGE_TOKENIZER_FOLDER, device),
                   TextTokenizer.from_folder(folder), settings, fingerprint(folder))

    def predict_chunk(self, observation: Observation) -> ActionChunk:
        """Return the actions for the next `horizon` control steps.

        Raises FrameError, InstructionError or TokenError for an observation it cannot use. It
        does not judge the actions: the caller's safety stage does.
        """
        started = time.perf_counter()
        self._check(observation)
        images = [self._codes(frame) for frame in observation.frames]
        encoded = time.perf_counter()
        prompt_ids = self._prompts.action(observation.instruction, images)
        decoded = decode_chunk(self._model, prompt_ids, self.horizon, cache=self._cache)
        token_ids = decoded.token_ids.cpu().numpy()
        actions = self._action_tokenizer.decode(token_ids)
        finished = time.perf_counter()
        return ActionChunk(
            actions=actions.astype(np.float32),
            token_ids=token_ids.astype(np.int32),
            entropy=decoded.entropy.cpu().numpy(),
            instruction=observation.instruction,
            frame_stamps_ns=tuple(frame.stamp_ns for frame in observation.frames),
            latency=LatencySplit(encode=encoded - started, prefill=decoded.prefill_s,
                                 decode=finished - encoded - decoded.prefill_s,
                                 total=finished - started))

    def prepare(self, frame: Frame, instruction: str, *, older: tuple[Frame, ...] = ()) -> None:
        """Compute ahead what the next observation will start with: the text and older frames.

        Call it while waiting for the newest frame. `predict_chunk` uses the work as far as its
        prompt has the same tokens, so a wrong guess costs time and never changes a result.

        :param frame: the frame just before the newest one.
        :param older: the ones before it, oldest first, for histories of more than two frames.
        """
        kept = (*older, frame)[max(0, len(older) + 2 - self.history_length):]
        images = [self._codes(seen) for seen in kept]
        prefill(self._model, self._prompts.action_prefix(instruction, images), self._cache)

    def warm_up(self) -> None:
        """Run every prompt shape once, so that the first real chunk is not slower."""
        blank = np.zeros((self.image_size, self.image_size, 3), np.uint8)
        frames = tuple(Frame(blank + np.uint8(i), i) for i in range(self.history_length))
        for seen in (frames[-1:], frames):
            self.predict_chunk(Observation(seen, 'warm up'))
            self.prepare(frames[-1], 'warm up')
            self.predict_chunk(Observation(seen, 'warm up'))

    @property
    def image_size(self) -> int:
        """Side of the square images that the model sees [px]."""
        return self.settings.image_size

    @property
    def history_length(self) -> int:
        """Frames in a full prompt, the newest included."""
        return self.settings.history_length

    @property
    def horizon(self) -> int:
        """Actions per chunk."""
        return self.settings.horizon

    @property
    def description(self) -> str:
        """One line for logs: name, size, state of training, number format, fingerprint."""
        millions = sum(p.numel() for p in self._model.parameters()) / 1e6
        training = 'trained' if self.settings.trained else 'random weights'
        return (f'{self.settings.name}: {millions:.1f} M parameters, {training}, '
                f'{str(self._model.dtype).removeprefix("torch.")} on {self._model.device}, '
                f'{self._fingerprint}')

    def _check(self, observation: Observation) -> None:
        if not 1 <= len(observation.frames) <= self.history_length:
            raise FrameError(f'expected 1 to {self.history_length} frames, got '
                             f'{len(observation.frames)}')

    def _codes(self, frame: Frame) -> NDArray[np.int64]:
        """Return the code indices of a frame; a frame seen before is not encoded again."""
        image = square_frame(frame.image, self.image_size)
        for seen, codes in self._recent_codes:
            if np.array_equal(seen, image):
                return codes
        image = image.copy()  # the caller may reuse its buffer
        codes = self._image_tokenizer.encode(torch.from_numpy(image)[None])[0].cpu().numpy()
        self._recent_codes = [(image, codes), *self._recent_codes[:self.history_length]]
        return codes
