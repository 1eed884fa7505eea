# SPDX-License-Identifier: Apache-2.0
"""The pictures of a report, as data URIs that stand in the page itself."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
import io
from pathlib import Path

import cv2
import numpy as np

from worldvla_sim.pictures import evenly_spaced
from worldvla_sim.tasks import SUITES

_STRIP_FRAMES, _STRIP_HEIGHT = 5, 150  # [px]
_OURS, _PUBLISHED = ('#2a6fb0', '#d1662b', '#3d9150', '#8a5aa8'), ('#c4c4c4', '#a8a8a8', '#8f8f8f',
                                                                  '#787878')


@dataclass(frozen=True)
class Bar:
    """A success rate of one policy on one suite."""

    policy: str
    suite: str
    rate: float  # 0 to 1
    interval: tuple[float, float]  # 95 %
    ours: bool


def success_plot(bars: Sequence[Bar]) -> str:
    """Return a PNG of bars with their intervals, side by side for each suite."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    ours = list(dict.fromkeys(bar.policy for bar in bars if bar.ours))
    published = list(dict.fromkeys(bar.policy for bar in bars if not bar.ours))
    colours = {name: _OURS[i % len(_OURS)] for i, name in enumerate(ours)}
    colours |= {name: _PUBLISHED[i % len(_PUBLISHED)] for i, name in enumerate(published)}
    width = 0.84 / max(1, len(colours))
    figure = Figure(figsize=(10.5, 3.8), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for place, (policy, colour) in enumerate(colours.items()):
        shown = [bar for bar in bars if bar.policy == policy]
        centres = [SUITES.index(bar.suite) + (place - (len(colours) - 1) / 2) * width
                   for bar in shown]
        rates = np.array([bar.rate for bar in shown])
        errors = np.abs(np.array([bar.interval for bar in shown]).T - rates)
        axes.bar(centres, rates, 0.92 * width, color=colour, edgecolor=colour, label=policy,
                 yerr=errors, error_kw={'elinewidth': 1, 'capsize': 2, 'ecolor': '#333333'})
    axes.set_xticks(range(len(SUITES)), SUITES)
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(lambda value, _: f'{value:.0%}')
    axes.set_ylabel('success rate')
    axes.grid(axis='y', color='#dddddd')
    axes.set_axisbelow(True)
    axes.spines[['top', 'right']].set_visible(False)
    figure.legend(loc='outside lower center', ncols=3, frameon=False, fontsize='small')
    stream = io.BytesIO()
    figure.savefig(stream, format='png', dpi=140)
    return _uri('image/png', stream.getvalue())


def video_strip(path: Path) -> str | None:
    """Return a JPEG of frames from first to last, side by side; None for an unreadable video."""
    video = cv2.VideoCapture(str(path))
    frames = []
    while True:
        found, frame = video.read()
        if not found:
            break
        width = round(frame.shape[1] * _STRIP_HEIGHT / frame.shape[0])
        frames.append(cv2.resize(frame, (width, _STRIP_HEIGHT), interpolation=cv2.INTER_AREA))
    video.release()
    if not frames:
        return None
    strip = np.hstack(evenly_spaced(frames, _STRIP_FRAMES))
    return _uri('image/jpeg', cv2.imencode('.jpg', strip, [cv2.IMWRITE_JPEG_QUALITY, 85])[1])


def _uri(kind: str, content: bytes | np.ndarray) -> str:
    return f'data:{kind};base64,{base64.b64encode(bytes(content)).decode()}'
