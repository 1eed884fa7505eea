# SPDX-License-Identifier: Apache-2.0
"""Bring an image to the size that the image tokenizer takes, bit for bit as the public code."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from worldvla_ros.errors import FrameError

RGB = NDArray[np.uint8]  # (H, W, 3)


def resize_to_cover(image: RGB, crop: tuple[int, int]) -> RGB:
    """Return the image at the smallest size that covers the crop (width, height).

    Halved with a box filter while both sides are at least twice the crop, then bicubic.
    """
    picture = Image.fromarray(image)
    while picture.width >= 2 * crop[0] and picture.height >= 2 * crop[1]:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = max(crop[0] / picture.width, crop[1] / picture.height)
    size = round(picture.width * scale), round(picture.height * scale)
    return np.asarray(picture.resize(size, Image.Resampling.BICUBIC))


def square_frame(image: RGB, size_px: int) -> RGB:
    """Return a square camera image at the size of the model, untouched when it has it.

    Raises FrameError for an image that is not square: the models saw squares in training, and
    what to cut away is the caller's decision.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise FrameError(f'expected an RGB image uint8 (H, W, 3), got {image.shape} '
                         f'{image.dtype}')
    if image.shape[0] != image.shape[1]:
        raise FrameError(f'expected a square image, got {image.shape[1]} x {image.shape[0]} px; '
                         f'crop it first')
    if image.shape[0] == size_px:
        return image
    return resize_to_cover(image, (size_px, size_px))
