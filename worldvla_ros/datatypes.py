# SPDX-License-Identifier: Apache-2.0
"""The values that cross module borders: frames, observations and action chunks."""

from dataclasses import dataclass, field

import numpy as np

from worldvla_ros.errors import FrameError, InferenceError, StateError

ACTION_DIM = 7
"""Values of one action: dx dy dz, rotation vector about the base axes (3), gripper."""
ACTION_AXES = ('dx', 'dy', 'dz', 'droll', 'dpitch', 'dyaw', 'gripper')
NO_OP_NORM = 1e-4
"""Norm of the six motion values, controller input, below which an action moves nothing (filter of
the public implementation)."""

STATE_DIM = 7
"""Values of the arm's state, see `arm_state`: position (3), rotation vector (3), gripper."""


def _frozen(array: np.ndarray) -> np.ndarray:
    """Return a read-only view, so that a shared array cannot change under its readers."""
    view = array.view()
    view.setflags(write=False)
    return view


def _checked_image(image: np.ndarray) -> np.ndarray:
    """Return a read-only view of an image; FrameError for anything that is not one."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise FrameError(f'a frame must be (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}')
    return _frozen(image)


@dataclass(frozen=True, eq=False)
class Frame:
    """One camera image with the time at which it was taken."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    stamp_ns: int  # [ns] on the clock of the camera's header
    wrist: np.ndarray | None = None  # (H, W, 3) uint8 RGB, what the wrist camera saw then

    def __post_init__(self) -> None:
        """Refuse anything that is not an RGB image; freeze the arrays."""
        object.__setattr__(self, 'image', _checked_image(self.image))
        if self.wrist is not None:
            object.__setattr__(self, 'wrist', _checked_image(self.wrist))


@dataclass(frozen=True, eq=False)
class Observation:
    """All that the policy sees at one instant."""

    frames: tuple[Frame, ...]  # oldest first; one frame only at the start of an episode
    instruction: str
    state: np.ndarray | None = None  # (7,) of the arm at the newest frame, see `arm_state`

    def __post_init__(self) -> None:
        """Refuse anything that is not a state; freeze the array."""
        if self.state is None:
            return
        if self.state.shape != (STATE_DIM,) or not np.isfinite(self.state).all():
            raise StateError(f'the state of the arm must be ({STATE_DIM},) finite numbers, got '
                             f'{self.state.tolist()}')
        object.__setattr__(self, 'state', _frozen(self.state))

    @property
    def stamp_ns(self) -> int:
        """Time of the newest frame [ns]."""
        return self.frames[-1].stamp_ns


@dataclass(frozen=True)
class LatencySplit:
    """Where the time of one inference went, all in [s]."""

    encode: float = 0.0  # image tokenizer
    prefill: float = 0.0  # pass over the prompt; 0 where one GPU graph is all: in decode
    decode: float = 0.0  # passes over the chunk
    total: float = 0.0  # request received -> chunk ready, everything included


@dataclass(frozen=True, eq=False)
class ActionChunk:
    """Consecutive actions from one inference, in controller input, not in SI units."""

    actions: np.ndarray  # (horizon, 7) float32, controller input, nominally in [-1, 1]
    token_ids: np.ndarray  # (horizon, 7) int32 vocabulary ids; empty (0, 7) where there are none
    entropy: np.ndarray  # (horizon, 7) float32 [nat] over the action bins; empty (0, 7) likewise
    instruction: str
    frame_stamps_ns: tuple[int, ...]  # [ns] of the frames it was computed from, oldest first
    latency: LatencySplit = field(default_factory=LatencySplit)

    def __post_init__(self) -> None:
        """Refuse another shape. NaN passes here: the safety stage refuses it with a verdict."""
        actions = self.actions
        if actions.ndim != 2 or actions.shape[0] < 1 or actions.shape[1] != ACTION_DIM:
            raise InferenceError(f'a chunk must be (horizon >= 1, {ACTION_DIM}), '
                                 f'got {actions.shape}')
        for name in ('actions', 'token_ids', 'entropy'):
            object.__setattr__(self, name, _frozen(getattr(self, name)))

    @property
    def horizon(self) -> int:
        """Number of actions."""
        return len(self.actions)


@dataclass(frozen=True, eq=False)
class ImaginedFrame:
    """One frame of an imagined rollout with what the model thought of it."""

    frame: Frame
    codes: np.ndarray  # (2h, 2w) int64 code indices
    entropy: np.ndarray  # (2h, 2w) float32 [nat] over the image codes
    log_probs: np.ndarray  # (2h, 2w) float32 [nat] of the chosen codes
    latency_s: float  # [s]
    passes: int  # forward passes; one per code where the frame before was no good draft
