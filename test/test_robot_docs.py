# SPDX-License-Identifier: Apache-2.0
"""What docs/robot.md tells users to write is what the package reads."""

from pathlib import Path
import re

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from worldvla_ros.arm_state import arm_state
from worldvla_ros.training.libero_hdf5 import read_episodes

ROOT = Path(__file__).parents[1]


def test_training_reads_a_demonstration_that_was_written_as_documented(tmp_path):
    text = (ROOT / 'docs' / 'robot.md').read_text()
    source, = (block for block in re.findall(r'```python\n(.*?)```', text, re.DOTALL)
               if 'def convert' in block)
    written = {}
    exec(source, written)
    rng = np.random.default_rng(0)
    steps = 6
    pictures = rng.integers(0, 256, (steps, 8, 8, 3), np.uint8)
    actions = rng.uniform(-1, 1, (steps, 7))
    positions, fingers = rng.uniform(0, 0.5, (steps, 3)), rng.uniform(0, 0.04, (steps, 2))
    quaternions = Rotation.random(steps, rng=0).as_quat()
    for _ in range(2):
        path, _ = written['convert'](tmp_path, 'put the cup on the shelf', pictures, actions,
                                     positions, quaternions, fingers, wrist=255 - pictures)

    first, second = read_episodes(path, wrist=True)
    np.testing.assert_array_equal(first.wrist, 255 - pictures)
    assert (first.name, second.name) == ('demo_0', 'demo_1')
    assert first.instruction == 'put the cup on the shelf' and first.success
    np.testing.assert_array_equal(first.frames, pictures)
    np.testing.assert_array_equal(first.actions, actions)
    np.testing.assert_allclose(
        first.states, arm_state(positions, Rotation.from_quat(quaternions), fingers))


def test_the_example_of_a_robots_parameters_is_read_without_a_mistake():
    pytest.importorskip('rcl_interfaces', reason='needs rclpy: source the workspace')
    import yaml

    from worldvla_ros.config import from_mapping
    from worldvla_ros.nodes.parameters import PolicyParameters
    from worldvla_ros.nodes.recorder import RecorderParameters
    content = yaml.safe_load((ROOT / 'config' / 'robot.yaml').read_text())
    parameters = from_mapping(PolicyParameters,
                              content['/**/worldvla_policy']['ros__parameters'])
    recorded = from_mapping(RecorderParameters,
                            content['/**/worldvla_recorder']['ros__parameters'])
    assert (recorded.base_frame, recorded.gripper_joints) == (
        parameters.base_frame, parameters.gripper_joints)
    usual = PolicyParameters()
    assert parameters.limits.max_translation == pytest.approx(usual.limits.max_translation / 5)
    assert np.isfinite(parameters.limits.workspace_max).all()
    assert parameters.servo.enabled
