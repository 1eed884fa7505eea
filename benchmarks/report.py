# SPDX-License-Identifier: Apache-2.0
"""Rows of a benchmark, the table of them, the file they go to, and the machine they came from."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
import json
import os
from pathlib import Path
import platform
import shlex
import sys
import traceback
from typing import Any

from commit import commit_of
import torch

Row = dict[str, Any]

NAME_WIDTH = 46  # of a table, at least
FAILED = 'failed'  # key of a row that tells of an exception


def row(name: str, value: float | None, unit: str, K: int | None = None,
        target: str | None = None, **more: object) -> Row:
    """Return one line of the table."""
    return {'name': name, 'K': K, 'value': value, 'unit': unit, 'target': target, **more}


def table_of(rows: list[Row]) -> list[str]:
    """Return one line per row."""
    lines = []
    width = max((len(line['name']) for line in rows), default=0)
    for line in rows:
        value = '-' if line['value'] is None else f'{line["value"]:.4g} {line["unit"]}'
        actions = '' if line['K'] is None else f'K={line["K"]}'
        runs = f'n={line["runs"]}' if 'runs' in line else ''
        lines.append(f'{line["name"]:{max(width, NAME_WIDTH)}} {actions:5} {value:>14} {runs:6} '
                     f'{line["target"] or ""}'.rstrip())
    return lines


@contextmanager
def recorded(rows: list[Row], name: str) -> Iterator[None]:
    """Let what goes wrong in a block be a row of the table, so that the next block runs."""
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        what = str(error).strip().partition('\n')[0]
        rows.append(row(f'{name}: failed: {type(error).__name__}: {what}', None, '')
                    | {FAILED: traceback.format_exc()})


def exit_status(rows: list[Row]) -> int:
    """Return 1 where a row tells of an exception."""
    return int(any(FAILED in line for line in rows))


def machine() -> Row:
    """Return what the figures depend on."""
    path = Path('/proc/cpuinfo')  # torch can tell too, but not in every version
    cpuinfo = path.read_text() if path.exists() else ''
    names = [line.split(':')[1].strip() for line in cpuinfo.splitlines()
             if line.startswith('model name')]
    return {'name': platform.node(), 'cpu': names[0] if names else platform.processor(),
            'cores': os.cpu_count(), 'amx_bf16': 'amx_bf16' in cpuinfo,
            'gpu': torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            'cuda': torch.version.cuda, 'threads': torch.get_num_threads(),
            'torch': torch.__version__, 'transformers': _version('transformers'),
            'triton': _version('triton'), 'python': platform.python_version(),
            'commit': commit_of(), 'date': datetime.now(UTC).isoformat(timespec='seconds'),
            'command': shlex.join(sys.argv)}


def _version(package: str) -> str | None:
    """Return the version of a package that may be missing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def save(path: Path, rows: list[Row], **more: object) -> None:
    """Write the rows as JSON and, beside it, as a text table; whole or not at all."""
    about = machine()
    report = {'machine': about, 'rows': rows, **more}
    table = [', '.join(f'{name} {value}' for name, value in about.items()), *table_of(rows)]
    path.parent.mkdir(parents=True, exist_ok=True)
    for target, text in ((path, json.dumps(report, indent=2)),
                         (path.with_suffix('.txt'), '\n'.join(table))):
        draft = target.with_name(f'.{target.name}')
        draft.write_text(text + '\n')
        draft.rename(target)
