# SPDX-License-Identifier: Apache-2.0
"""Deterministic textures: wood, plaster, tiles and wicker from noise, printed labels from shapes.

Every image is (H, W, 3) uint8 RGB with at most 256 pixels a side; colours are given in [0, 255].
Random parts take a seed, so a pack is the same on every machine.
"""

import io

import numpy as np
from PIL import Image as Picture
from PIL import ImageDraw, ImageFont

Image = np.ndarray  # (H, W, 3) uint8
Rgb = tuple[int, int, int]
Cell = tuple[float, float, float, float]  # left, top, right, bottom in [0, 1]
_OVERSAMPLE = 4  # labels are drawn larger and averaged, which smooths letters and circles


def to_png(image: Image) -> bytes:
    """Encode an image as PNG."""
    buffer = io.BytesIO()
    Picture.fromarray(np.ascontiguousarray(image)).save(buffer, format='PNG', optimize=True)
    return buffer.getvalue()


class Label:
    """A printed label that is drawn with relative coordinates, origin in the upper left corner."""

    def __init__(self, background: Rgb, width: int = 128, height: int = 128) -> None:
        self._size = (width, height)
        self._picture = Picture.new(
            'RGB', (width * _OVERSAMPLE, height * _OVERSAMPLE), background)
        self._draw = ImageDraw.Draw(self._picture)

    def rectangle(self, cell: Cell, color: Rgb) -> 'Label':
        """Fill a rectangle."""
        self._draw.rectangle(self._pixels(cell), fill=color)
        return self

    def ellipse(self, cell: Cell, color: Rgb) -> 'Label':
        """Fill the ellipse inside a cell."""
        self._draw.ellipse(self._pixels(cell), fill=color)
        return self

    def polygon(self, points: list[tuple[float, float]], color: Rgb) -> 'Label':
        """Fill a polygon of (x, y) points."""
        width, height = self._picture.size
        self._draw.polygon([(x * width, y * height) for x, y in points], fill=color)
        return self

    def text(self, cell: Cell, words: str, color: Rgb) -> 'Label':
        """Write one line that fills the cell: as high and as wide as it allows."""
        left, top, right, bottom = self._pixels(cell)
        font = ImageFont.load_default(size=100)
        box = font.getbbox(words)
        ink = Picture.new('L', (int(box[2] - box[0]) + 2, int(box[3] - box[1]) + 2))
        ImageDraw.Draw(ink).text(
            (1 - box[0], 1 - box[1]), words, fill=255, font=font, stroke_width=2)
        fitted = ink.resize((max(1, int(right - left)), max(1, int(bottom - top))))
        self._picture.paste(Picture.new('RGB', fitted.size, color), (int(left), int(top)), fitted)
        return self

    def image(self) -> Image:
        """Return the finished label."""
        return np.asarray(self._picture.resize(self._size, Picture.Resampling.BOX)).copy()

    def _pixels(self, cell: Cell) -> tuple[float, float, float, float]:
        width, height = self._picture.size
        return cell[0] * width, cell[1] * height, cell[2] * width, cell[3] * height


def noise(size: int, seed: int, octaves: int = 4) -> np.ndarray:
    """Return smooth tileable noise, (size, size) float64 of about [-1, 1]."""
    random = np.random.default_rng(seed)
    total = np.zeros((size, size))
    position = np.arange(size) / size
    for octave in range(octaves):
        knots = 4 << octave
        grid = random.random((knots, knots)) - 0.5
        low = (position * knots).astype(int)
        weight = position * knots - low
        high = (low + 1) % knots
        rows = grid[low] * (1 - weight)[:, None] + grid[high] * weight[:, None]
        total += (rows[:, low] * (1 - weight) + rows[:, high] * weight) / 2 ** octave
    return total


def plaster(color: Rgb, seed: int, size: int = 256, roughness: float = 8.0) -> Image:
    """Return a wall: one colour with faint stains."""
    return _to_image(np.full((size, size, 3), color, float)
                     + roughness * noise(size, seed)[..., None])


def wood(color: Rgb, seed: int, size: int = 128, planks: int = 0) -> Image:
    """Return wood grain along the columns; `planks` rows of boards when not zero."""
    rows = np.arange(size)[:, None] / size
    bend = noise(size, seed, 3)
    grain = (0.5 * np.sin(2 * np.pi * (9 * rows + 1.5 * bend))
             + 0.3 * np.sin(2 * np.pi * (31 * rows + 2.5 * bend)))
    image = np.full((size, size, 3), color, float)
    image += grain[..., None] * np.array([10, 9, 7]) + 8 * bend[..., None]
    if planks:
        random = np.random.default_rng(seed)
        step = size // planks
        for k in range(planks):
            board = slice(k * step, (k + 1) * step)
            image[board] += random.normal(0, 8)
            seam = int(random.integers(size))
            image[board, seam:seam + 2] -= 35
            image[k * step:k * step + 2] -= 35
    return _to_image(image)


def tiles(color: Rgb, grout: Rgb, count: int, seed: int, size: int = 256) -> Image:
    """Return count x count square floor tiles of slightly different brightness."""
    image = np.full((size, size, 3), color, float) + 8 * noise(size, seed)[..., None]
    random = np.random.default_rng(seed)
    step = size // count
    for row in range(count):
        for column in range(count):
            tile = np.s_[row * step:(row + 1) * step, column * step:(column + 1) * step]
            image[tile] += random.normal(0, 3)
    for k in range(count):
        image[k * step:k * step + 2] = grout
        image[:, k * step:k * step + 2] = grout
    return _to_image(image)


def wicker(color: Rgb, seed: int, strands: int = 12, size: int = 128) -> Image:
    """Return a plain weave: strands that go over and under each other."""
    phase = np.arange(size) * strands / size
    strand = phase.astype(int)
    over = (strand[:, None] + strand[None, :]) % 2 == 0
    bulge = np.sin(np.pi * (phase % 1))
    height = np.where(over, bulge[:, None] * np.ones(size), bulge[None, :] * np.ones((size, 1)))
    shade = 0.55 + 0.45 * height + 0.06 * noise(size, seed)
    return _to_image(np.asarray(color, float) * shade[..., None])


def _to_image(values: np.ndarray) -> Image:
    return np.asarray(np.clip(values, 0, 255), np.uint8)
