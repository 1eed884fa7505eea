# SPDX-License-Identifier: Apache-2.0
"""The launch files start the graph of worldvla_ros/graph.py.

They are evaluated with the launch of a ROS install where there is one. It is not on PyPI, so a
stand-in with the few names that they use takes its place elsewhere, as in CI.
"""

from dataclasses import dataclass, field
import importlib.util
import logging
from pathlib import Path
import runpy
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from worldvla_ros import graph
from worldvla_ros.errors import ConfigError

FOLDER = Path(__file__).parent.parent / 'launch'
FILES = {'policy': (graph.POLICY_ARGUMENTS, graph.policy_graph),
         'sim': (graph.SIM_ARGUMENTS, graph.sim_graph),
         'demo': (graph.DEMO_ARGUMENTS, graph.demo_graph)}
LAUNCH_IS_HERE = importlib.util.find_spec('launch_ros') is not None


@dataclass
class StandInContext:
    """What the launch files ask of a LaunchContext."""

    argv: list[str]
    launch_configurations: dict[str, str] = field(default_factory=dict)


@dataclass
class StandInArgument:
    """DeclareLaunchArgument: it lets the default hold where nothing was given."""

    name: str
    default_value: str
    description: str
    choices: list[str] | None

    def execute(self, context):
        given = context.launch_configurations.setdefault(self.name, self.default_value)
        assert self.choices is None or given in self.choices


@dataclass
class StandInFunction:
    """OpaqueFunction: it returns entities, called with the context."""

    function: Any

    def execute(self, context):
        return self.function(context)


def configuration(name):
    """LaunchConfiguration: a promise of the value of an argument."""
    return SimpleNamespace(perform=lambda context: context.launch_configurations[name])


def node(**options):
    """Node of launch_ros, without what starts it."""
    return SimpleNamespace(node_package=options.pop('package'),
                           node_executable=options.pop('executable'), **options)


@pytest.fixture
def make_context(monkeypatch):
    """Return what makes the LaunchContext of a command line; it brings the stand-in if needed."""
    if LAUNCH_IS_HERE:
        from launch import LaunchContext
    else:
        LaunchContext = StandInContext
        names = {
            'launch': {'LaunchContext': StandInContext,
                       'LaunchDescription': lambda entities: SimpleNamespace(entities=entities)},
            'launch.actions': {'DeclareLaunchArgument': StandInArgument,
                               'OpaqueFunction': StandInFunction},
            'launch.substitutions': {'LaunchConfiguration': configuration},
            'launch_ros': {}, 'launch_ros.actions': {'Node': node}}
        for name, content in names.items():
            module = ModuleType(name)
            vars(module).update(content)
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.delitem(sys.modules, 'worldvla_ros.nodes.launching', raising=False)

    def make_context(*argv):
        context = LaunchContext(argv=list(argv))
        context.launch_configurations.update(text.split(':=', 1) for text in argv)
        return context
    yield make_context
    if not LAUNCH_IS_HERE:
        sys.modules.pop('worldvla_ros.nodes.launching', None)


def nodes_of(name, context):
    """Evaluate a launch file; returns what its last entity starts."""
    describe = runpy.run_path(str(FOLDER / f'{name}.launch.py'))['generate_launch_description']
    *_, nodes = [entity.execute(context) for entity in describe().entities]
    return nodes


@pytest.mark.parametrize('name', FILES)
def test_the_launch_file_declares_the_arguments_of_the_graph(name, make_context):
    describe = runpy.run_path(str(FOLDER / f'{name}.launch.py'))['generate_launch_description']
    *declared, _ = describe().entities
    assert [one.name for one in declared] == list(FILES[name][0])


@pytest.mark.parametrize('name', FILES)
def test_the_launch_file_starts_the_nodes_of_the_graph(name, make_context):
    arguments, make_graph = FILES[name]
    specs = make_graph(graph.defaults(arguments))
    assert [one.node_executable for one in nodes_of(name, make_context())] == [
        spec.executable for spec in specs]


@pytest.mark.skipif(LAUNCH_IS_HERE, reason='launch_ros does not tell what a node is started with')
def test_what_is_given_reaches_the_node(make_context, tmp_path):
    limits = tmp_path / 'limits.yaml'
    limits.touch()
    started, = nodes_of('policy', make_context(
        f'params_file:={limits}', 'subfolder:=512', 'dtype:=bfloat16', 'weights:=fp8',
        'settings:=worldvla_512_libero', 'namespace:=left'))
    assert started.namespace == 'left'
    assert started.parameters == [
        str(limits), {'subfolder': '512', 'settings': 'worldvla_512_libero', 'dtype': 'bfloat16',
                      'weights': 'fp8'}]
    assert (started.node_package, started.name) == (graph.PACKAGE, graph.POLICY_NODE)
    assert ('image', 'image') in started.remappings


def test_a_misspelt_argument_is_refused_and_that_of_another_launch_file_logged(make_context,
                                                                             caplog):
    """Pins a bug: with `parms_file:=` the robot ran without its limits."""
    with pytest.raises(ConfigError, match="'parms_file'; did you mean 'params_file'"):
        nodes_of('policy', make_context('parms_file:=/limits.yaml'))
    with caplog.at_level(logging.WARNING):
        assert nodes_of('policy', make_context('xyz:=1', 'device:=cuda'))
    assert "unknown launch argument 'xyz'" in caplog.text


@pytest.mark.parametrize('name', ['use_rviz', 'world', 'model', 'params', 'use_sim', 'image_topic',
                                  'ur_type', 'controllers_file'])
def test_a_robots_bringup_that_includes_the_policy_keeps_its_arguments(make_context, name):
    """Pins a bug: any that was half like one of ours ended the launch."""
    assert nodes_of('policy', make_context(f'{name}:=1'))
