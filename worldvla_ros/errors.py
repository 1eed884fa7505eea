# SPDX-License-Identifier: Apache-2.0
"""Errors of this package: each says what came, what was expected and what to do."""


class WorldVLAError(Exception):
    """Base of every error that this package raises on purpose."""


class ConfigError(WorldVLAError):
    """A configuration has an unknown key, a missing key or a value outside its range."""


class FrameError(WorldVLAError):
    """An image has an encoding, shape, dtype or stamp that cannot be used as a frame."""


class StateError(WorldVLAError):
    """The arm's state is missing where the policy reads it, or is no usable state."""


class InstructionError(WorldVLAError):
    """An instruction is empty where one is needed, too long, no plain text, or not taken now."""


class TokenError(WorldVLAError):
    """A token sequence breaks the grammar of action chunks, images or prompts."""


class CheckpointError(WorldVLAError):
    """A checkpoint is missing, truncated, or does not fit the code that loads it."""


class InferenceError(WorldVLAError):
    """The inference backend failed, died, hung or returned an unusable chunk."""


class RecordingError(WorldVLAError):
    """A demonstration cannot be put together from what came, or cannot be written."""


class SimulationError(WorldVLAError):
    """The simulator could not be built, reset or stepped; never a failed episode."""


class AssetError(SimulationError):
    """An asset pack is missing, half written or does not fit the task."""
