# SPDX-License-Identifier: Apache-2.0
"""Frames in anonymous shared memory between the node and its worker.

The memory has no name: it lives as long as a process holds its descriptor, so a killed process
leaves nothing behind. One request is in flight at a time, so one set of slots is enough.
"""

from dataclasses import dataclass
import mmap
import os

import numpy as np

from worldvla_ros.datatypes import Frame
from worldvla_ros.errors import FrameError


@dataclass(frozen=True)
class FrameSlot:
    """Where a frame lies in the shared memory."""

    offset: int  # [byte]
    height: int  # [px]
    width: int  # [px]
    stamp_ns: int
    wrist: tuple[int, int] | None = None  # [px] height, width of its wrist picture, behind it


class SharedFrames:
    """
    A block of memory that two processes see; one writes frames, the other reads them.

    :param capacity: size [byte]
    :param descriptor: of a block made by another process; None makes a new one
    """

    def __init__(self, capacity: int, descriptor: int | None = None) -> None:
        if descriptor is None:
            descriptor = os.memfd_create('worldvla_frames', os.MFD_CLOEXEC)
            os.ftruncate(descriptor, capacity)
        self.descriptor = descriptor
        self.capacity = capacity
        self._memory = mmap.mmap(descriptor, capacity)
        self._bytes = np.frombuffer(self._memory, np.uint8)

    def write(self, frames: tuple[Frame, ...]) -> tuple[FrameSlot, ...]:
        """Copy frames in, from any memory layout; FrameError if they do not fit."""
        pictures = [picture for frame in frames for picture in (frame.image, frame.wrist)
                    if picture is not None]
        needed = sum(picture.size for picture in pictures)
        if needed > self.capacity:
            shapes = ', '.join(str(picture.shape) for picture in pictures)
            raise FrameError(f'frames of {shapes} need {needed} bytes of shared memory, there are '
                             f'{self.capacity}: lower the resolution of the camera or raise '
                             f'worker.frame_memory_mb')
        slots, offset = [], 0
        for frame in frames:
            height, width, _ = frame.image.shape
            wrist = None if frame.wrist is None else frame.wrist.shape[:2]
            slots.append(FrameSlot(offset, height, width, frame.stamp_ns, wrist))
            for picture in (frame.image, frame.wrist):
                if picture is not None:
                    self._image(offset, *picture.shape[:2])[...] = picture
                    offset += picture.size
        return tuple(slots)

    def read(self, slots: tuple[FrameSlot, ...]) -> tuple[Frame, ...]:
        """Return copies, which stay valid while the writer writes the next request."""
        return tuple(self._frame(slot) for slot in slots)

    def close(self) -> None:
        """Give the memory back. Safe to repeat."""
        if self._memory.closed:
            return
        del self._bytes
        self._memory.close()
        os.close(self.descriptor)

    def _frame(self, slot: FrameSlot) -> Frame:
        image = self._image(slot.offset, slot.height, slot.width).copy()
        wrist = (None if slot.wrist is None
                 else self._image(slot.offset + image.size, *slot.wrist).copy())
        return Frame(image, slot.stamp_ns, wrist)

    def _image(self, offset: int, height: int, width: int) -> np.ndarray:
        return self._bytes[offset:offset + 3 * height * width].reshape(height, width, 3)
