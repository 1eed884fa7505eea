# SPDX-License-Identifier: Apache-2.0
"""The graph of nodes: what is given reaches the nodes, what is not given is left to them."""

import pytest

from worldvla_ros.errors import ConfigError
from worldvla_ros.graph import (
    DEMO_ARGUMENTS,
    POLICY_ARGUMENTS,
    SIM_ARGUMENTS,
    demo_graph,
    policy_graph,
    sim_graph,
)
from worldvla_ros.policy.settings import POLICY_FILE, PolicySettings

ALL_ARGUMENTS = {**POLICY_ARGUMENTS, **SIM_ARGUMENTS, **DEMO_ARGUMENTS}


@pytest.mark.parametrize('name', ALL_ARGUMENTS)
def test_every_argument_is_documented_and_its_default_is_a_choice(name):
    argument = ALL_ARGUMENTS[name]
    assert argument.doc
    assert not argument.choices or argument.default in argument.choices


def test_an_argument_that_is_not_given_is_left_to_parameter_file_and_node():
    policy, = policy_graph({})
    bridge, = sim_graph({})
    assert policy.parameters == bridge.parameters == {}
    assert policy.parameter_files == bridge.parameter_files == ()


def test_a_given_argument_overrides_the_parameter_file(tmp_path):
    path = tmp_path / 'robot.yaml'
    path.touch()
    spec, = policy_graph({'params_file': str(path), 'checkpoint': '/weights'})
    arguments = spec.ros_arguments()
    assert arguments.index(str(path)) < arguments.index("checkpoint:='/weights'")


@pytest.mark.parametrize('graph', [policy_graph, sim_graph])
def test_a_parameter_file_that_does_not_exist_is_refused(graph):
    """Its limits would be silently missing."""
    with pytest.raises(ConfigError, match=r'params_file.*/no/robot\.yaml'):
        graph({'params_file': '/no/robot.yaml'})


def test_the_topics_of_camera_and_arm_are_remapped():
    spec, = policy_graph({'image': '/camera/image_raw', 'ee_pose': '/arm/pose'})
    assert spec.remappings == {'image': '/camera/image_raw',
                               'wrist_image': 'wrist_image', 'ee_pose': '/arm/pose',
                               'joint_states': 'joint_states'}


def test_the_demo_wires_camera_commands_time_and_mode():
    policy, bridge = demo_graph({'mode': 'realtime'})
    assert policy.remappings['image'] == 'camera/agentview/image_raw'
    assert policy.remappings['wrist_image'] == 'camera/wrist/image_raw'
    assert all(policy.remappings[name] == name for name in ('ee_pose', 'joint_states'))
    assert bridge.remappings['action'] == f'{policy.name}/action', 'in whatever namespace'
    assert policy.parameters['use_sim_time'] is True
    assert policy.parameters['control.mode'] == bridge.parameters['mode'] == 'realtime'


def test_a_second_arm_has_a_namespace_of_its_own():
    for given in ('left', '/left'):
        spec, = policy_graph({'namespace': given})
        assert '__ns:=/left' in spec.ros_arguments()
    assert not any('__ns' in one for one in policy_graph({})[0].ros_arguments())


def test_the_demo_shows_a_checkpoint_pictures_of_the_size_that_it_sees(tmp_path):
    PolicySettings('other', trained=True, image_size=64).save(tmp_path / POLICY_FILE)
    for given, size in (({}, 192), ({'checkpoint': 'worldvla-mini'}, 192),
                        ({'checkpoint': str(tmp_path)}, 64),
                        ({'checkpoint': str(tmp_path), 'image_size': '128'}, 128)):
        _, bridge = demo_graph(given)
        assert bridge.parameters['image_size'] == size, given
    for unknown in ('someone/on-the-hub', 'random', str(tmp_path / 'missing')):
        _, bridge = demo_graph({'checkpoint': unknown})
        assert 'image_size' not in bridge.parameters, 'left to the bridge'


def test_the_demo_shows_the_wrist_camera_to_a_checkpoint_that_reads_it(tmp_path):
    PolicySettings('other', trained=True, reads_wrist=True).save(tmp_path / POLICY_FILE)
    for given, shown in (({}, False), ({'checkpoint': str(tmp_path)}, True),
                         ({'checkpoint': str(tmp_path), 'wrist': 'false'}, False),
                         ({'checkpoint': 'someone/on-the-hub', 'wrist': 'true'}, True)):
        _, bridge = demo_graph(given)
        assert bridge.parameters['wrist'] is shown, given
    _, bridge = demo_graph({'checkpoint': 'someone/on-the-hub'})
    assert 'wrist' not in bridge.parameters, 'left to the bridge'


@pytest.mark.parametrize('path', ["/it's here", 'true', '7', '0.5', '/a path/with spaces', 'a: b'])
def test_a_path_survives_the_ros_command_line(path):
    rclpy_parameter = pytest.importorskip('rclpy.parameter', reason='needs rclpy to read it back')
    spec, = policy_graph({'checkpoint': path})
    text = spec.ros_arguments()[-1].removeprefix('checkpoint:=')
    assert rclpy_parameter.get_parameter_value(text).string_value == path


def test_a_number_that_is_none_is_refused_by_the_name_of_its_argument():
    """Pins a bug: `make demo ARGS="--image-size abc"` ended in a traceback."""
    with pytest.raises(ConfigError, match="image_size must be a number, got 'abc'"):
        demo_graph({'image_size': 'abc'})
