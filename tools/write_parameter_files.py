# SPDX-License-Identifier: Apache-2.0
"""Write the parameter files in config/ from the parameters as the nodes declare them.

The defaults have one home, the dataclasses; a test compares the files with what this writes.

    python tools/write_parameter_files.py
"""

from pathlib import Path
import textwrap
from typing import Any

from worldvla_ros.config import FieldInfo, describe
from worldvla_ros.graph import BRIDGE_NODE, POLICY_NODE
from worldvla_ros.nodes.parameters import AT_START, PolicyParameters
from worldvla_ros.nodes.recorder import RECORDER_NODE, RecorderParameters
from worldvla_sim.ros.bridge_settings import BridgeSettings

FOLDER = Path(__file__).parent.parent / 'config'
_LAUNCHED = 'params_file:=... to the launch file or --params-file to the node'
FILES = {'policy.yaml': (POLICY_NODE, PolicyParameters, _LAUNCHED),
         'bridge.yaml': (BRIDGE_NODE, BridgeSettings, _LAUNCHED),
         'recorder.yaml': (RECORDER_NODE, RecorderParameters,
                           '--ros-args --params-file ... to `ros2 run worldvla_ros record`')}
_INDENT = '    '


def section_of(node: str) -> str:
    """Return the section of a parameter file that a node finds in whatever namespace it is."""
    return f'/**/{node}'


def parameter_file(node: str, cls: type, passed: str) -> str:
    """Return a ROS parameter file with every parameter, its meaning and its default.

    :param passed: how a user gives such a file to the node, for its head.
    """
    lines = [f'# Every parameter of {node} with its default; copy what you change and pass it as',
             f'# {passed}.',
             '# Written by tools/write_parameter_files.py.',
             f'{section_of(node)}:', '  ros__parameters:']
    for info in describe(cls):
        when = ('' if not info.read_only else '; at configure'
                if node == POLICY_NODE and info.name not in AT_START else '; at start')
        meaning = f'{info.doc} ({info.allowed()}{when})'
        lines += textwrap.wrap(meaning, 99, initial_indent=f'{_INDENT}# ',
                               subsequent_indent=f'{_INDENT}#   ')
        lines.append(f'{_INDENT}{info.name}: {_yaml(info)}')
    return '\n'.join(lines) + '\n'


def _yaml(info: FieldInfo) -> str:
    value: Any = info.default
    if isinstance(value, tuple):
        return '[' + ', '.join(map(_scalar, value)) + ']'
    return _scalar(value)


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(value).replace('inf', '.inf')
    return f"'{value}'" if isinstance(value, str) else str(value)


def main() -> None:
    """Write all of them."""
    for name, (node, cls, passed) in FILES.items():
        (FOLDER / name).write_text(parameter_file(node, cls, passed))


if __name__ == '__main__':
    main()
