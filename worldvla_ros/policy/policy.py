# SPDX-License-Identifier: Apache-2.0
"""From camera frames and an instruction to a chunk of robot actions. Start reading here.

    frames --image tokenizer--> code indices --prompt builder--> prompt ids
           --chunk decoder--> action tokens --action tokenizer--> ActionChunk

Checkpoints that read the arm's state have its tokens in the prompt, too, and those that read the
wrist camera have its picture after each frame.

The robot's limits are not known here: what a chunk may do is the safety stage's decision.
"""

from collections.abc import Sequence
from pathlib import Path
import time

import numpy as np
from numpy.typing import NDArray

from worldvla_ros.datatypes import STATE_DIM, ActionChunk, Frame, LatencySplit, Observation
from worldvla_ros.errors import FrameError, InstructionError, StateError
from worldvla_ros.model.checkpoint import pick_dtype
from worldvla_ros.model.chunk_decoder import (
    ChunkDecoder,
    checked_weights,
    chunk_decoder,
    require_chunk_mask,
)
from worldvla_ros.model.decoded import finite_entropy
from worldvla_ros.model.weight_files import require_device
from worldvla_ros.policy.pretrained import Pretrained, read_settings

MAX_TEXT_TOKENS = 192  # room for the instruction in the KV cache; longer ones are refused
USUAL_TEXT_TOKENS = 48  # instructions up to this length take a smaller shape on a GPU


class WorldVLAPolicy:
    """A WorldVLA checkpoint that turns observations into action chunks.

    Not thread-safe: one thread owns it, as one thread owns the device.
    """

    def __init__(self, pretrained: Pretrained, *, weights: str = 'dense',
                 drafts: bool = False) -> None:
        """Take a checkpoint in memory; `from_pretrained` reads one.

        :param weights: see `chunk_decoder`.
        :param drafts: see `StaticChunkDecoder`.
        """
        self.pretrained = pretrained
        self._weights, self._drafts = weights, drafts
        self._prompts = pretrained.prompts
        self._text_room = len(self._prompts.text_prefix('?')) + MAX_TEXT_TOKENS
        self._action_tokenizer = pretrained.action_tokenizer
        self._state_tokenizer = pretrained.state_tokenizer
        self._recent_codes: list[tuple[NDArray[np.uint8], NDArray[np.int64]]] = []
        self._decoder = self._new_decoder()

    @classmethod
    def from_pretrained(cls, path: str | Path, *, subfolder: str | None = None,
                        device: str = 'cpu', dtype: str = 'auto',
                        num_actions: int | None = None,
                        settings: str | Path | None = None,
                        weights: str = 'dense', drafts: bool = False) -> 'WorldVLAPolicy':
        """Load a checkpoint folder or Hub id; see `Pretrained.load` for the other options.

        Raises CheckpointError, or InferenceError for weights that cannot be had here.

        :param weights: 'dense', or 'fp8' for products in 8 bits; see `chunk_decoder`.
        :param drafts: on a GPU, guess each chunk from the last one: fewer passes, the same result;
            see `StaticChunkDecoder`.
        """
        require_device(device)
        # Before 14 GB are read in vain.
        if checked_weights(weights, device, pick_dtype(dtype, device)) == 'fp8':
            require_chunk_mask(read_settings(path, subfolder, settings).chunk_mask)
        return cls(Pretrained.load(path, subfolder=subfolder, device=device, dtype=dtype,
                                   num_actions=num_actions, settings=settings),
                   weights=weights, drafts=drafts)

    def predict_chunk(self, observation: Observation) -> ActionChunk:
        """Return the actions for the next `horizon` control steps.

        Raises FrameError, InstructionError, StateError or InferenceError for an observation that
        the model cannot take: no square images, too many of them, an empty or endless
        instruction, no state where the checkpoint reads it; and for one that it computes NaN for.
        """
        started = time.perf_counter()
        self._check_number_of_frames(observation)
        self._check_text(observation.instruction)
        images = self._codes(observation.frames)
        encoded = time.perf_counter()
        prompt_ids = self._prompts.action(observation.instruction, images,
                                          self._state_ids(observation.state))
        decoded = self._decoder.decode(prompt_ids)
        entropy = finite_entropy(decoded, self._decoder.forget)
        token_ids = decoded.token_ids.cpu().numpy()
        actions = self._action_tokenizer.decode(token_ids)
        finished = time.perf_counter()
        return ActionChunk(
            actions=actions.astype(np.float32),
            token_ids=token_ids.astype(np.int32),
            entropy=entropy,
            instruction=observation.instruction,
            frame_stamps_ns=tuple(frame.stamp_ns for frame in observation.frames),
            latency=LatencySplit(encode=encoded - started, prefill=decoded.prefill_s,
                                 decode=finished - encoded - decoded.prefill_s,
                                 total=finished - started))

    def prepare(self, frames: Sequence[Frame], instruction: str) -> None:
        """Compute ahead what the next observation will start with: the text and older frames.

        Call it while waiting for the newest frame. `predict_chunk` uses the work as far as its
        prompt has the same tokens, so a wrong guess costs time and never changes a result in
        float32. Passes of other shapes round otherwise in bfloat16: there a value near the edge
        of two bins may fall on the other side.

        :param frames: the frames before the newest one, oldest first.
        """
        self._check_text(instruction)
        first = max(0, len(frames) - (self.history_length - 1))  # the newest is yet to come
        self._decoder.prefill(
            self._prompts.action_prefix(instruction, self._codes(frames[first:])))

    def warm_up(self) -> None:
        """Run every prompt shape once, so that the first real chunk is not slower."""
        self._decoder.warm_up()
        blank = np.zeros((self.image_size, self.image_size, 3), np.uint8)
        frames = [Frame(blank + np.uint8(i), i, blank if self.reads_wrist else None)
                  for i in range(self.history_length)]
        state = np.zeros(STATE_DIM)
        for seen in (frames[-1:], frames):
            self.predict_chunk(Observation(tuple(seen), 'warm up', state))
            self.prepare(frames, 'warm up')
            self.predict_chunk(Observation(tuple(seen), 'warm up', state))

    @property
    def image_size(self) -> int:
        """Side of the square images that the model sees [px]."""
        return self.pretrained.settings.image_size

    @property
    def history_length(self) -> int:
        """Frames in a full prompt, the newest included."""
        return self.pretrained.settings.history_length

    @property
    def horizon(self) -> int:
        """Actions per chunk."""
        return self.pretrained.settings.horizon

    @property
    def reads_state(self) -> bool:
        """Whether observations must have the arm's state."""
        return self.pretrained.settings.reads_state

    @property
    def reads_wrist(self) -> bool:
        """Whether frames must have the picture of the wrist camera."""
        return self.pretrained.settings.reads_wrist

    @property
    def description(self) -> str:
        """One line for logs: name, size, state of training, number format, fingerprint."""
        coarse = '' if self._weights == 'dense' else f', {self._weights} weights'
        return self.pretrained.description + coarse

    def _new_decoder(self) -> ChunkDecoder:
        """Return a decoder for all prompts up to a full history and the longest instruction."""
        blank = np.zeros([2 * side for side in self.pretrained.grid_hw], dtype=np.int64)
        newest = [blank] * (1 + self.reads_wrist)
        history = newest * self.history_length
        older = len(self._prompts.action_prefix('?', history[len(newest):]))
        full = len(self._prompts.action('?', history, self._state_ids(np.zeros(STATE_DIM))))
        return chunk_decoder(
            self.pretrained.model, self.horizon, newest_rows=full - older,
            prompt_lengths=(older + USUAL_TEXT_TOKENS, full + USUAL_TEXT_TOKENS,
                            full + MAX_TEXT_TOKENS),
            chunk_mask=self.pretrained.settings.chunk_mask,
            choice=self.pretrained.settings.bin_choice, weights=self._weights,
            drafts=self._drafts)

    def _check_number_of_frames(self, observation: Observation) -> None:
        if not 1 <= len(observation.frames) <= self.history_length:
            raise FrameError(f'expected 1 to {self.history_length} frames, got '
                             f'{len(observation.frames)}')

    def _check_text(self, instruction: str) -> None:
        """Raise InstructionError for an instruction that no decoder has room for."""
        excess = len(self._prompts.text_prefix(instruction)) - self._text_room
        if excess > 0:
            raise InstructionError(f'the instruction makes the prompt {excess} tokens too '
                                   f'long, it may have about {MAX_TEXT_TOKENS}; use fewer words, '
                                   f'got {instruction[:60]!r}...')

    def _state_ids(self, state: NDArray[np.floating] | None) -> NDArray[np.int64] | None:
        """Return the tokens of a state (7,), None where the checkpoint does not read it."""
        if self._state_tokenizer is None:
            return None
        if state is None:
            raise StateError('this checkpoint reads the state of the arm, and the observation '
                             'has none; give Observation.state, see worldvla_ros.arm_state')
        return self._state_tokenizer.encode(state)

    def _codes(self, frames: Sequence[Frame]) -> list[NDArray[np.int64]]:
        """Return the code indices of the pictures of some frames, in the order of the prompt."""
        pictures = []
        for frame in frames:
            pictures.append(frame.image)
            if self.reads_wrist:
                if frame.wrist is None:
                    raise FrameError('this checkpoint reads the wrist camera, and a frame has no '
                                     'picture of it; give Frame.wrist')
                pictures.append(frame.wrist)
        return [self._codes_of_picture(picture) for picture in pictures]

    def _codes_of_picture(self, picture: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Return the code indices of a picture; one seen a moment ago is not encoded again."""
        for seen, codes in self._recent_codes:
            if np.array_equal(seen, picture):
                return codes
        image = picture.copy()  # the caller may reuse its buffer
        codes = self.pretrained.encode(image)
        kept = (1 + self.reads_wrist) * (self.history_length + 1)
        self._recent_codes = [(image, codes), *self._recent_codes[:kept - 1]]
        return codes
