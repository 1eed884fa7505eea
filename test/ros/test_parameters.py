# SPDX-License-Identifier: Apache-2.0
"""Parameters: each default once, each range enforced, each refusal names the parameter."""

import math
from pathlib import Path
import re
from typing import get_args

import pytest
import rclpy
from rclpy.exceptions import InvalidParameterValueException
from rclpy.parameter import Parameter

from worldvla_ros.config import describe, flatten
from worldvla_ros.errors import ConfigError
from worldvla_ros.graph import BRIDGE_NODE, POLICY_NODE
from worldvla_ros.model.engine.network import Weights
from worldvla_ros.nodes.backends import worker_settings
from worldvla_ros.nodes.parameters import PolicyParameters, check_files, declare, read
from worldvla_sim.ros.bridge_settings import BridgeSettings

CONFIG = Path(__file__).parents[2] / 'config'


@pytest.fixture
def new_node(context):
    """Make nodes with parameters from outside, as a launch file gives them."""
    nodes = []

    def new_node(**values):
        nodes.append(rclpy.create_node(
            'worldvla_policy', context=context, start_parameter_services=False,
            parameter_overrides=[Parameter(name.replace('__', '.'), value=value)
                                 for name, value in values.items()]))
        declare(nodes[-1], PolicyParameters)
        return nodes[-1]
    yield new_node
    for node in nodes:
        node.destroy_node()


def test_the_defaults_are_those_of_the_dataclass(new_node):
    assert read(new_node(), PolicyParameters) == PolicyParameters()


def test_every_value_has_a_description_with_meaning_range_and_unit(new_node):
    node = new_node()
    for info in describe(PolicyParameters):
        descriptor = node.describe_parameter(info.name)
        assert info.doc and descriptor.description.startswith(info.doc)
        assert info.allowed() in descriptor.description
        assert descriptor.read_only == info.read_only
    assert '[Hz]' in node.describe_parameter('control.rate').description
    assert '[m]' in node.describe_parameter('limits.max_translation').description


def test_values_from_outside_arrive(new_node):
    parameters = read(new_node(
        control__rate=10.0, control__mode='lockstep', camera__crop='none',
        limits__workspace_max=[0.5, 0.5, 1.0]), PolicyParameters)
    assert (parameters.control.rate, parameters.control.mode) == (10.0, 'lockstep')
    assert parameters.camera.crop == 'none'
    assert parameters.limits.workspace_max == (0.5, 0.5, 1.0)
    assert parameters.lockstep and parameters.period_ns == 100_000_000


@pytest.mark.parametrize('values, meant', [
    ({'limits__max_translaton': 0.01}, "'limits.max_translaton'; did you mean "
                                       "'limits.max_translation'"),
    ({'max_rotation': 0.1}, "'max_rotation'; did you mean 'limits.max_rotation'"),
    ({'use_sim_tme': True}, "'use_sim_tme'; did you mean 'use_sim_time'")])
def test_a_parameter_that_resembles_one_of_the_node_is_refused(new_node, values, meant):
    """Pins a bug: ROS passes over it, and a misspelt limit limited nothing."""
    with pytest.raises(ConfigError, match=meant):
        new_node(**values)


@pytest.mark.parametrize('name', ['whatever', 'update_rate', 'frame_id', 'timeout', 'joints',
                                  'planning_frame', 'robot_base_frame', 'base_frame_id',
                                  'qos_overrides./image.subscription.depth'])
def test_a_parameter_of_other_nodes_changes_nothing(new_node, name):
    """Pins a bug: a name in a `/**` section that was half like one of ours stopped the node."""
    assert read(new_node(**{name: 1}), PolicyParameters) == PolicyParameters()


def test_what_ros_itself_takes_is_taken(new_node):
    new_node(use_sim_time=True, start_type_description_service=False)


@pytest.mark.parametrize('namespace', ['/', '/robot', '/cell/left'])
@pytest.mark.parametrize('file, name, cls, parameter, other', [
    ('policy.yaml', POLICY_NODE, PolicyParameters, 'limits.max_translation', 0.01),
    ('bridge.yaml', BRIDGE_NODE, BridgeSettings, 'image_size', 128)])
def test_the_shipped_parameter_file_holds_in_every_namespace(
        domain_id, tmp_path, namespace, file, name, cls, parameter, other):
    """Pins a bug: in a namespace all of it was passed over, the limits, too."""
    text = (CONFIG / file).read_text()
    changed = re.sub(rf'{re.escape(parameter)}: .*', f'{parameter}: {other}', text)
    assert changed != text
    path = tmp_path / file
    path.write_text(changed)
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain_id, args=[
        '--ros-args', '-r', f'__ns:={namespace}', '--params-file', str(path)])
    node = rclpy.create_node(name, context=context, start_parameter_services=False)
    try:
        declare(node, cls)
        assert flatten(read(node, cls)) == {**flatten(cls()), parameter: other}
    finally:
        node.destroy_node()
        context.try_shutdown()


@pytest.mark.parametrize('section', ['worldvla_policy', '/**'])
def test_a_parameter_file_is_looked_through_for_this_node(domain_id, tmp_path, section):
    """In a section of its own or for all; that of another node is no matter."""
    def start(name):
        path = tmp_path / 'parameters.yaml'
        path.write_text(f'{section}:\n  ros__parameters:\n    use_sim_time: false\n'
                        f'    {name}: 0.01\n'
                        f'another:\n  ros__parameters:\n    whatever: 1\n')
        context = rclpy.Context()
        rclpy.init(context=context, domain_id=domain_id,
                   args=['--ros-args', '--params-file', str(path)])
        node = rclpy.create_node('worldvla_policy', context=context,
                                 start_parameter_services=False)
        try:
            declare(node, PolicyParameters)
            return read(node, PolicyParameters)
        finally:
            node.destroy_node()
            context.try_shutdown()
    assert start('limits.max_translation').limits.max_translation == 0.01
    with pytest.raises(ConfigError, match=r"did you mean 'limits\.max_translation'"):
        start('limits.max_translaton')


@pytest.mark.parametrize('weights', get_args(Weights))
def test_the_weights_that_the_engine_has_can_be_asked_for(new_node, weights):
    parameters = read(new_node(weights=weights), PolicyParameters)
    assert worker_settings(parameters).weights == weights


def test_drafts_can_be_asked_for(new_node):
    assert not worker_settings(read(new_node(), PolicyParameters)).drafts
    assert worker_settings(read(new_node(drafts=True), PolicyParameters)).drafts


def test_infinite_walls_arrive(new_node):
    parameters = read(new_node(limits__workspace_min=[-math.inf, 0.0, -math.inf]),
                      PolicyParameters)
    assert parameters.limits.workspace_min == (-math.inf, 0.0, -math.inf)


@pytest.mark.parametrize('name, value', [
    ('control__rate', 10), ('limits__max_translation', 0), ('obs__max_age', 1)])
def test_a_whole_number_is_taken_where_a_float_is_expected(new_node, name, value):
    """`-p control.rate:=10` is an integer to ROS."""
    section, _, field = name.partition('__')
    parameters = read(new_node(**{name: value}), PolicyParameters)
    read_value = getattr(getattr(parameters, section), field)
    assert read_value == value and isinstance(read_value, float)


@pytest.mark.parametrize('name, value', [
    ('control__rate', 0.5), ('control__rate', 0), ('control__rate', math.nan),
    ('control__mode', 'fast'), ('control__replan_steps', -1), ('control__replan_steps', 2.5),
    ('obs__max_age', 1e9), ('obs__max_age', 'long'), ('backend', 'magic'), ('autostart', 'yes'),
    ('limits__workspace_max', [1.0, 2.0]), ('limits__workspace_max', [-math.inf] * 3),
    ('worker__max_restarts', 1001), ('checkpoint', 7), ('weights', 'int4'),
])
def test_a_value_out_of_range_or_type_is_refused_by_name(new_node, name, value):
    with pytest.raises((ConfigError, InvalidParameterValueException),
                       match=name.rpartition('__')[2]):
        read(new_node(**{name: value}), PolicyParameters)


@pytest.mark.parametrize('name, value, got', [
    ('limits__workspace_min', 0.3, r'0\.3 \(float\)'), ('limits__workspace_max', 1, r'1 \(int\)'),
    ('gripper_joints', True, r'True \(bool\)'),
    ('gripper_joints', 'finger_joint', r"'finger_joint' \(str\)")])
def test_a_single_value_in_place_of_a_list_is_refused(new_node, name, value, got):
    """Pins a bug: a number raised TypeError, and of a name each letter became a joint."""
    with pytest.raises(ConfigError, match=f'a list of .*, got {got}'):
        read(new_node(**{name: value}), PolicyParameters)


def test_a_read_only_parameter_cannot_change_while_the_node_runs(new_node):
    node = new_node()
    result, = node.set_parameters([Parameter('control.rate', value=10.0)])
    assert not result.successful and 'read-only' in result.reason
    assert read(node, PolicyParameters).control.rate == 20.0


def test_a_limit_can_change_while_the_node_runs_and_only_within_its_range(new_node):
    node = new_node()
    good, bad = node.set_parameters([Parameter('limits.max_translation', value=0.01),
                                     Parameter('limits.max_rotation', value=99.0)])
    assert good.successful and not bad.successful and 'limits.max_rotation' in bad.reason
    limits = read(node, PolicyParameters).limits
    assert (limits.max_translation, limits.max_rotation) == (0.01, 0.5)


@pytest.mark.parametrize('section, name, counts', [
    ('worldvla_policy', '/worldvla_policy', True),
    ('/**', '/left/worldvla_policy', True),
    ('/**/worldvla_policy', '/worldvla_policy', True),
    ('/**/worldvla_policy', '/cell/left/worldvla_policy', True),
    ('/*/worldvla_policy', '/left/worldvla_policy', True),
    ('/left/worldvla_policy', '/left/worldvla_policy', True),
    ('worldvla_policy', '/left/worldvla_policy', False),
    ('/*/worldvla_policy', '/worldvla_policy', False),
    ('/**/worldvla_polcy', '/worldvla_policy', False),
    ('worldvla_policy', '/left_policy', False)])
def test_a_parameter_file_without_a_section_for_the_node_is_refused(
        domain_id, tmp_path, section, name, counts):
    """Pins a bug: a robot ran without the limits of its file. ROS itself says what counts."""
    path = tmp_path / 'robot.yaml'
    path.write_text(f'{section}:\n  ros__parameters:\n    limits.max_translation: 0.01\n')
    arguments = ['--ros-args', '--params-file', str(path)]
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain_id, args=arguments)
    namespace, _, base = name.rpartition('/')
    node = rclpy.create_node(base, namespace=namespace or '/', context=context,
                             start_parameter_services=False)
    try:
        assert bool(node._parameter_overrides) is counts
        if counts:
            check_files(node, arguments)
        else:
            with pytest.raises(ConfigError, match=f'no section for {name}.*its sections: /'):
                check_files(node, arguments)
    finally:
        node.destroy_node()
        context.try_shutdown()
