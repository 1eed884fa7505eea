# SPDX-License-Identifier: Apache-2.0
"""The imagined world: a frame and an action in, the next frame out, on the policy's weights."""

from pathlib import Path
import time

import numpy as np
from numpy.typing import ArrayLike, NDArray

from worldvla_ros.datatypes import ACTION_DIM, Frame, ImaginedFrame
from worldvla_ros.errors import InferenceError, TokenError
from worldvla_ros.model.decoded import finite_entropy
from worldvla_ros.model.image_decoding import decode_image_rows, image_rows
from worldvla_ros.model.image_preprocessing import square_frame
from worldvla_ros.policy.pretrained import Pretrained


class WorldModel:
    """Plays a rollout in imagination: `reset` to a real frame, then `step` action by action.

    It sees a frame and the actions since, as in training: one action, as published, or up to
    `PolicySettings.world_stride`. Each frame that is imagined from so many is the start of the
    next ones, so errors add up once per stride.
    """

    def __init__(self, pretrained: Pretrained, *, control_period_s: float = 0.05,
                 reencode: bool = True, drafts: bool = True) -> None:
        """Take a checkpoint in memory.

        :param control_period_s: [s] between frames, for their stamps; LIBERO runs at 20 Hz.
        :param reencode: turn each imagined frame to pixels and back before the next step, as
            the public evaluation does. False feeds the codes themselves, one encoding cheaper.
        :param drafts: try the codes of one frame as those of the next, which saves passes. The
            choices stay the network's own; in bfloat16 ties may break otherwise.
        """
        self._pretrained = pretrained
        self._prompts = pretrained.prompts
        self._action_tokenizer = pretrained.action_tokenizer
        self._period_ns = round(control_period_s * 1e9)
        self._reencode, self._drafts = reencode, drafts
        self._stride = pretrained.settings.world_stride
        self._stamp_ns = 0
        blank = np.zeros([2 * side for side in pretrained.grid_hw], dtype=np.int64)
        longest = self._prompts.world(blank, self._action_tokenizer.encode(
            np.zeros((self._stride, ACTION_DIM))))
        self._rows = image_rows(pretrained.model, len(longest), pretrained.grid_hw)
        self._start: NDArray[np.int64] | None = None  # codes of the frame to imagine from
        self._since: tuple[NDArray[np.int64], ...] = ()  # tokens (7,) of the actions from there on
        self._newest: NDArray[np.int64] | None = None  # codes, which the next resemble

    @classmethod
    def from_pretrained(cls, path: str | Path, *, subfolder: str | None = None,
                        device: str = 'cpu', dtype: str = 'auto',
                        settings: str | Path | None = None) -> 'WorldModel':
        """Load a checkpoint folder or Hub id; see `Pretrained.load` for the options."""
        return cls(Pretrained.load(path, subfolder=subfolder, device=device, dtype=dtype,
                                   settings=settings))

    def warm_up(self) -> None:
        """Run every shape once, so that the first real frame is not slower; then forget it."""
        size = self._pretrained.settings.image_size
        self.reset(Frame(np.zeros((size, size, 3), np.uint8), 0))
        for _ in range(2):  # a frame beside nothing alike, and one beside its like
            self.step(np.zeros(ACTION_DIM))
        self._start = None

    def reset(self, frame: Frame) -> Frame:
        """Start from a real frame; return it as the model sees it (resized)."""
        self._start = self._newest = self._pretrained.encode(frame.image)
        self._since = ()
        self._stamp_ns = frame.stamp_ns
        image = square_frame(frame.image, self._pretrained.settings.image_size)
        return Frame(image, frame.stamp_ns)

    def step(self, action: ArrayLike) -> ImaginedFrame:
        """Imagine the frame after an action (7,) in controller input.

        Raises InferenceError before `reset` and where the network computes NaN, TokenError for an
        action of another shape or NaN. The rollout stays where it was.
        """
        if self._start is None:
            raise InferenceError('the world model has no frame yet; call reset(frame) first')
        started = time.perf_counter()
        ids = self._action_tokenizer.encode(action)
        if ids.shape != (ACTION_DIM,):
            raise TokenError(f'expected one action ({ACTION_DIM},), got an array of shape '
                             f'{ids.shape}')
        since = (*self._since, ids)
        prompt_ids = self._prompts.world(self._start, np.stack(since))
        decoded = decode_image_rows(self._rows, prompt_ids.tolist(), self._pretrained.grid_hw,
                                    draft=self._newest if self._drafts else None)
        entropy = finite_entropy(decoded, self._rows.forget)
        image = self._pretrained.image_tokenizer.decode(decoded.codes[None])[0].cpu().numpy()
        codes = decoded.codes.cpu().numpy()
        self._since, self._newest = since, codes
        if len(since) == self._stride:
            self._since = ()
            self._start = self._newest = (self._pretrained.encode(image) if self._reencode
                                          else codes)
        self._stamp_ns += self._period_ns
        return ImaginedFrame(Frame(image, self._stamp_ns), codes, entropy,
                             decoded.log_probs.cpu().numpy(), time.perf_counter() - started,
                             decoded.passes)
