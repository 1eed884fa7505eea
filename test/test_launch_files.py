# SPDX-License-Identifier: Apache-2.0
"""The launch files start the graph of worldvla_ros/graph.py; evaluated where launch_ros is."""

from pathlib import Path

import pytest

pytest.importorskip('launch_ros', reason='launch_ros is not on PyPI, only in a ROS install')

from launch import LaunchContext
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.launch_description_sources import (
    get_launch_description_from_python_launch_file,
)

from worldvla_ros import graph

FOLDER = Path(__file__).parent.parent / 'launch'
FILES = {'policy': (graph.POLICY_ARGUMENTS, graph.policy_graph),
         'sim': (graph.SIM_ARGUMENTS, graph.sim_graph),
         'demo': (graph.DEMO_ARGUMENTS, graph.demo_graph)}


def entities_of(name):
    path = FOLDER / f'{name}.launch.py'
    return get_launch_description_from_python_launch_file(str(path)).entities


@pytest.mark.parametrize('name', FILES)
def test_the_launch_file_declares_the_arguments_of_the_graph(name):
    declared = {entity.name for entity in entities_of(name)
                if isinstance(entity, DeclareLaunchArgument)}
    assert declared == set(FILES[name][0])


@pytest.mark.parametrize('name', FILES)
def test_the_launch_file_starts_the_nodes_of_the_graph(name):
    context = LaunchContext(argv=[])
    nodes = []
    for entity in entities_of(name):
        result = entity.execute(context) or []
        nodes += result if isinstance(entity, OpaqueFunction) else []
    arguments, make_graph = FILES[name]
    specs = make_graph(graph.defaults(arguments))
    assert [node.node_executable for node in nodes] == [spec.executable for spec in specs]
