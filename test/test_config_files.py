# SPDX-License-Identifier: Apache-2.0
"""config/*.yaml hold exactly the parameters and defaults that the nodes declare."""

from pathlib import Path
import runpy

import pytest
import yaml

pytest.importorskip('rcl_interfaces', reason='needs rclpy: source the workspace, or `make test`')

ROOT = Path(__file__).parent.parent
TOOL = runpy.run_path(str(ROOT / 'tools' / 'write_parameter_files.py'))


@pytest.mark.parametrize('name', TOOL['FILES'])
def test_the_parameter_file_is_what_the_declarations_say(name):
    wanted = TOOL['parameter_file'](*TOOL['FILES'][name])
    assert (ROOT / 'config' / name).read_text() == wanted, 'run tools/write_parameter_files.py'


@pytest.mark.parametrize('name', TOOL['FILES'])
def test_the_parameter_file_loads_into_the_defaults(name):
    from worldvla_ros.config import flatten, from_mapping
    node, cls, _ = TOOL['FILES'][name]
    content = yaml.safe_load((ROOT / 'config' / name).read_text())
    section = content[TOOL['section_of'](node)]
    assert flatten(from_mapping(cls, section['ros__parameters'])) == flatten(cls())
