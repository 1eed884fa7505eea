# SPDX-License-Identifier: Apache-2.0
"""Photograph every task and room: `python -m worldvla_sim.assets.gallery --out out/gallery`.

Writes one picture per task (agentview at the first official initial state, mirrored back so that
labels can be read), one per room from further away, a contact sheet and an index page.
"""

import argparse
from html import escape
from pathlib import Path
import sys
from typing import Any

import mujoco
import numpy as np
from PIL import Image as Picture

from worldvla_ros.arguments import positive_int
from worldvla_ros.errors import SimulationError
from worldvla_sim.libero_env import NO_OP, ROBOTS, LiberoEnv
from worldvla_sim.observation import rendered
from worldvla_sim.tasks import SUITES, Task, suite_tasks

_SHEET_COLUMNS = 8
_ROOMS = {  # name -> a task that is set in it, point that the camera looks at [m]
    'floor': ('libero_object', 0, (-0.2, 0.0, 0.3)),
    'tabletop': ('libero_goal', 0, (-0.3, 0.0, 1.0)),
    'kitchen': ('libero_10', 3, (-0.6, 0.0, 1.0)),
    'living_room': ('libero_10', 4, (-0.6, 0.0, 0.7)),
    'study': ('libero_10', 5, (-0.6, 0.0, 1.0)),
}
_VIEW_FROM, _VIEW_DISTANCE = (0.86, -0.40, 0.32), 2.4  # direction from the point, and [m]
_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Built-in LIBERO assets</title><style>
body {{ font: 15px sans-serif; margin: 2em; background: #fafafa; color: #222 }}
figure {{ display: inline-block; width: 256px; margin: 0 12px 16px 0; vertical-align: top }}
img {{ width: 256px; border-radius: 4px }}
figcaption {{ font-size: 13px }}
</style></head>
<body><h1>LIBERO with {assets} assets</h1>
<p>Task pictures: agentview at the first official initial state, mirrored back from the orientation
that policies are trained with. <a href="contact_sheet.png">All on one sheet</a>.</p>
{sections}
</body></html>
"""


def photograph_task(task: Task, *, assets: str, robot: str, size: int) -> np.ndarray:
    """Return agentview at the first official initial state, (size, size, 3) uint8."""
    with LiberoEnv(task.suite, task.index, assets=assets, robot=robot, image_size=size) as env:
        return np.ascontiguousarray(rendered(env.reset(0).agentview)[:, ::-1])


def photograph_room(name: str, *, assets: str, robot: str, size: int) -> np.ndarray:
    """Return a view of a whole room, (size, size, 3) uint8."""
    suite, task, look_at = _ROOMS[name]
    back = np.array(_VIEW_FROM) / np.linalg.norm(_VIEW_FROM)
    right = np.cross((0, 0, 1), back) / np.linalg.norm(np.cross((0, 0, 1), back))
    axes = np.column_stack([right, np.cross(back, right), back])  # a camera looks along -z
    with LiberoEnv(suite, task, assets=assets, robot=robot, image_size=size) as env:
        env.reset(0)
        camera = env.model.camera('agentview')
        camera.pos[:] = look_at + _VIEW_DISTANCE * back
        mujoco.mju_mat2Quat(camera.quat, axes.ravel())
        return np.ascontiguousarray(rendered(env.step(NO_OP).agentview)[:, ::-1])


def contact_sheet(pictures: list[np.ndarray], columns: int = _SHEET_COLUMNS) -> np.ndarray:
    """Return all pictures, of one size, on one sheet."""
    height, width, _ = pictures[0].shape
    rows = -(-len(pictures) // columns)
    sheet = np.full((rows * height, columns * width, 3), 250, np.uint8)
    for k, picture in enumerate(pictures):
        row, column = divmod(k, columns)
        sheet[row * height:(row + 1) * height, column * width:(column + 1) * width] = picture
    return sheet


def write_gallery(
    out: Path, *, assets: str, robot: str = 'light', size: int = 256,
    suites: tuple[str, ...] = SUITES,
) -> Path:
    """Write pictures, contact sheet and page into a folder; return the page."""
    out.mkdir(parents=True, exist_ok=True)
    pictures, sections = [], []

    def section(title: str, entries: list[tuple[str, str, np.ndarray]]) -> None:
        figures = []
        for stem, caption, picture in entries:
            Picture.fromarray(picture).save(out / f'{stem}.png')
            pictures.append(picture)
            figures.append(f'<figure><img src="{stem}.png" alt="{escape(caption)}">'
                           f'<figcaption>{escape(caption)}</figcaption></figure>')
        sections.append(f'<h2>{title}</h2>\n' + '\n'.join(figures))

    options: dict[str, Any] = {'assets': assets, 'robot': robot, 'size': size}
    section('Rooms', [(f'room-{name}', name.replace('_', ' '), photograph_room(name, **options))
                      for name in _ROOMS])
    for suite in suites:
        section(suite, [(f'{suite}-{task.index}', f'{task.index}: {task.instruction}',
                         photograph_task(task, **options)) for task in suite_tasks(suite)])
    Picture.fromarray(contact_sheet(pictures)).save(out / 'contact_sheet.png')
    page = out / 'index.html'
    page.write_text(_PAGE.format(assets=assets, sections='\n'.join(sections)))
    return page


def main(arguments: list[str] | None = None) -> int:
    """Write the gallery that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, default=Path('out/gallery'))
    parser.add_argument('--assets', default='builtin', choices=('builtin', 'official'))
    parser.add_argument('--robot', default='light', choices=ROBOTS)
    parser.add_argument('--size', type=positive_int, default=256,
                        help='edge of each picture [px]')
    parser.add_argument('--suite', choices=SUITES, action='append', help='default: all four')
    options = parser.parse_args(arguments)
    try:
        page = write_gallery(options.out, assets=options.assets, robot=options.robot,
                             size=options.size, suites=tuple(options.suite or SUITES))
    except (SimulationError, OSError) as error:
        raise SystemExit(f'no gallery: {error}') from error
    print(f'wrote {page}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
