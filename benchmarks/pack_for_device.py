# SPDX-License-Identifier: Apache-2.0
"""Make the working tree small enough to travel to a lent machine, and whole again afterwards.

    python benchmarks/pack_for_device.py STAGE      # of on_device.sh; says what to call and carry
    python benchmarks/pack_for_device.py restore    # at once after the call, and before a commit

What travels is every tracked file, every untracked one that git does not ignore, and what is
carried. Where that is too much, weights of shipped checkpoints that the stage does not read wait
in scratch/left_here, in the same folders as in the tree. Each call first brings back whatever is
there, so an interrupted one costs nothing.

A store that is too large beside the weights that training starts from goes first, in a call of its
own: `store`, and at once, while the machine is warm, `train --store ''`.
"""

import argparse
import filecmp
import os
from pathlib import Path
import subprocess
import sys

from commit import commit_of
import yaml

LIMIT = 64 * 2 ** 20  # [bytes]
LEFT = Path('scratch/left_here')
MOVABLE = 'worldvla_ros/checkpoints/*/model*.safetensors'  # not those of the image tokenizers
RECIPES = {'train': 'config/train/mini_gpu.yaml', 'profile': 'config/train/mini_gpu.yaml',
           'first': 'config/train/mini_gpu.yaml', 'tokenizer': 'config/train/mini_gpu_vqgan.yaml'}
STORE = 'scratch/store.tar.xz'
VIDEO = ['scratch/frames.mp4', 'scratch/frames.json']
STAGES = ('once', 'first', 'second', 'tests', 'chunks', 'reference', 'frames', 'rest', 'profile',
          'tokenizer', 'store', 'train')


class PackingError(Exception):
    """The tree cannot travel, or not be made whole, as it is."""


def restore(root: Path) -> list[Path]:
    """Move back what was left here; return the files.

    Raises PackingError where another file has taken the place of one; both stay as they are.
    """
    left = root / LEFT
    waiting = sorted(path for path in left.rglob('*') if path.is_file())
    for path in waiting:
        target = root / path.relative_to(left)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
        elif filecmp.cmp(path, target, shallow=False):
            path.unlink()
        else:
            raise PackingError(f'{target} differs from {path}, which was moved out of its place; '
                               'delete the one that is wrong')
    for folder in sorted(left.rglob('*'), reverse=True):
        folder.rmdir()
    return [path.relative_to(left) for path in waiting]


def pack(root: Path, stage: str, recipe: str, store: str) -> tuple[list[Path], list[Path]]:
    """Move out what has to be; return what was, and what the call must carry.

    Raises PackingError where something is missing or even then too much would travel.
    """
    restore(root)
    tracked = _git_files(root, '--cached')
    read, carried = _inputs(root, stage, recipe, store, tracked)
    movable = sorted((path for path in tracked if path.match(MOVABLE)
                      and not any(path.is_relative_to(folder) for folder in read)
                      and (root / path).exists()),
                     key=lambda path: -(root / path).stat().st_size)
    moved: list[Path] = []
    for path in movable:
        if travelling_bytes(root, carried) <= LIMIT:
            break
        target = root / LEFT / path
        target.parent.mkdir(parents=True, exist_ok=True)
        (root / path).rename(target)
        moved.append(path)
    size = travelling_bytes(root, carried)
    if size > LIMIT:
        restore(root)
        raise PackingError(f'{_mib(size)} would travel and {_mib(LIMIT)} may, even without '
                           f'{_named(moved)}; carried: {_named(carried)}')
    return moved, carried


def travelling_bytes(root: Path, carried: list[Path]) -> int:
    """Return the bytes of all that travels, with names and padding as in a tar archive."""
    files = _git_files(root, '--cached', '--others', '--exclude-standard')
    for path in (*carried, Path('shared')):
        whole = [root / path] if (root / path).is_file() else (root / path).rglob('*')
        files |= {one.relative_to(root) for one in whole if one.is_file()}
    block = 512
    return sum(block + -(-(root / path).lstat().st_size // block) * block
               for path in files if os.path.lexists(root / path))


def _inputs(root: Path, stage: str, recipe: str, store: str, tracked: set[Path]
            ) -> tuple[list[Path], list[Path]]:
    """Return the folders that a stage reads, and of all it reads what is not tracked."""
    stores = [store] if store else []
    needed = {'train': stores, 'store': stores, 'tokenizer': VIDEO}
    carried = list(map(Path, needed.get(stage, [])))
    read: list[Path] = []
    if recipe and stage != 'store':
        settings = yaml.safe_load((root / recipe).read_text())
        named = (settings.get('data', {}).get('tokenizer'), settings.get('init_from'),
                 settings.get('model', {}).get('init_from'))
        read = [Path(name) for name in named if name]
        carried += [path for path in read
                    if not any(one.is_relative_to(path) for one in tracked)]
    missing = [path for path in (*read, *carried) if not (root / path).exists()]
    if missing:
        raise PackingError(f'{_named(missing)}: the stage {stage} needs it, and it is not here; '
                           'see benchmarks/README.md')
    return read, carried


def _git_files(root: Path, *which: str) -> set[Path]:
    listed = subprocess.run(['git', 'ls-files', '-z', *which], cwd=root, capture_output=True,
                            text=True, check=True).stdout
    return {Path(name) for name in listed.split('\0') if name}


def _named(paths: list[Path]) -> str:
    return ', '.join(map(str, paths)) or 'nothing'


def _mib(size: int) -> str:
    return f'{size / 2 ** 20:.1f} MiB'


def main() -> int:
    """Pack or restore; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('stage', choices=(*STAGES, 'restore'))
    parser.add_argument('--recipe', help='instead of the one of the stage')
    parser.add_argument('--store', default=STORE, help="packed, for `train` and `store`; '' after "
                                                       'the latter')
    parser.add_argument('--root', type=Path, default=Path(__file__).parents[1],
                        help=argparse.SUPPRESS)
    options = parser.parse_args()
    root, stage = options.root.resolve(), options.stage
    try:
        print(f'brought back: {_named(restore(root))}')
        if stage == 'restore':
            return 0
        commit = commit_of(root)  # before files are missing
        moved, carried = pack(root, stage, options.recipe or RECIPES.get(stage, ''),
                              options.store)
    except PackingError as error:
        print(f'pack_for_device: {error}', file=sys.stderr)
        return 1
    settings = [f'COMMIT={commit}', *([f'RECIPE={options.recipe}'] if options.recipe else []),
                *([f'STORE={options.store}'] if options.store != STORE else [])]
    print(f'left here: {_named(moved)}\n'
          f'travelling: {_mib(travelling_bytes(root, carried))} of {_mib(LIMIT)}\n'
          f'carry: {_named(carried)}\n'
          f'call: {" ".join(settings)} bash benchmarks/on_device.sh {stage}')
    if moved:
        print('afterwards, before any commit: python benchmarks/pack_for_device.py restore')
    return 0


if __name__ == '__main__':
    sys.exit(main())
