# SPDX-License-Identifier: Apache-2.0
"""Rows of a benchmark, the table of them, the file they go to, and the machine they came from."""

import json
import os
from pathlib import Path
import platform
import sys
from typing import Any

import torch

Row = dict[str, Any]


def row(name: str, value: float | None, unit: str, K: int | None = None,
        target: str | None = None, **more: object) -> Row:
    """Return one line of the table."""
    return {'name': name, 'K': K, 'value': value, 'unit': unit, 'target': target, **more}


def table_of(rows: list[Row]) -> list[str]:
    """Return one line per row."""
    lines = []
    for line in rows:
        value = '-' if line['value'] is None else f'{line["value"]:.4g} {line["unit"]}'
        actions = '' if line['K'] is None else f'K={line["K"]}'
        lines.append(f'{line["name"]:46} {actions:5} {value:>14}   {line["target"] or ""}')
    return lines


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
            'torch': torch.__version__, 'python': platform.python_version(),
            'command': ' '.join(sys.argv)}


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
