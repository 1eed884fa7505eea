# SPDX-License-Identifier: Apache-2.0
"""Bring an image to the size that the image tokenizer takes, bit for bit as the public code."""

import random

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from worldvla_ros.errors import FrameError

BLOCK_PX = 32  # sides are counted in blocks of 32 px
MAX_ASPECT = 4.0  # of the published crop sizes

RGB = NDArray[np.uint8]  # (H, W, 3)


def crop_sizes(target_px: int) -> list[tuple[int, int]]:
    """Return the published crop sizes (width, height), widest first.

    They walk along the hyperbola of equal area: as many rows of blocks as fit at each width.
    """
    budget = (target_px // BLOCK_PX) ** 2
    sizes, height = [], 1
    for width in range(budget, 0, -1):
        while True:
            if max(width, height) <= MAX_ASPECT * min(width, height):
                sizes.append((width * BLOCK_PX, height * BLOCK_PX))
            if width * (height + 1) > budget:
                break
            height += 1
    return sizes


def choose_crop(width: int, height: int, target_px: int) -> tuple[int, int]:
    """Return the crop size (width, height) that keeps most of an image; ties to the larger."""
    def kept(crop: tuple[int, int]) -> float:
        scales = crop[0] / width, crop[1] / height
        return min(scales) / max(scales)
    return max(crop_sizes(target_px), key=lambda crop: (kept(crop), crop))


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


def crop_like_published(image: RGB, target_px: int, rng: random.Random | None = None) -> RGB:
    """Return the image cropped to one of the published sizes.

    The public code draws the offset at random, at inference too; without a generator the crop
    is centred. A square image has one possible offset.
    """
    crop = choose_crop(image.shape[1], image.shape[0], target_px)
    image = resize_to_cover(image, crop)
    spare = image.shape[1] - crop[0], image.shape[0] - crop[1]
    left, top = (rng.randint(0, s) if rng else s // 2 for s in spare)
    return image[top:top + crop[1], left:left + crop[0]]


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


def whiten(image: NDArray[np.uint8]) -> RGB:
    """Return an RGBA image (H, W, 4) blended on white, as the public code reads such files."""
    alpha = image[..., 3:] / 255.0
    return (image[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
