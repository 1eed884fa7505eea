# SPDX-License-Identifier: Apache-2.0
"""Turn a graph of worldvla_ros/graph.py into a launch description; needs launch and launch_ros."""

from collections.abc import Callable, Mapping, Sequence
import logging

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from worldvla_ros.config import nearest
from worldvla_ros.errors import ConfigError
from worldvla_ros.graph import PACKAGE, Argument, NodeSpec

_logger = logging.getLogger(__name__)
_MISSPELT = 0.9  # likeness from which a name is one of ours; `model` is like `mode` by 0.89


def describe_launch(arguments: Mapping[str, Argument],
                    graph: Callable[[Mapping[str, str]], list[NodeSpec]]) -> LaunchDescription:
    """Declare the arguments, then start the nodes of the graph with what was given for them."""
    def start(context: LaunchContext) -> list[Node]:
        check_names(context.argv, arguments)
        given = {name: LaunchConfiguration(name).perform(context) for name in arguments}
        return [Node(package=PACKAGE, executable=spec.executable, name=spec.name,
                     namespace=spec.namespace or None, output='screen',
                     parameters=[*spec.parameter_files, spec.parameters],
                     remappings=list(spec.remappings.items()))
                for spec in graph(given)]
    return LaunchDescription([
        *(DeclareLaunchArgument(name, default_value=argument.default, description=argument.doc,
                                choices=list(argument.choices) or None)
          for name, argument in arguments.items()),
        OpaqueFunction(function=start)])


def check_names(argv: Sequence[str], arguments: Mapping[str, Argument]) -> None:
    """
    Look for misspelt arguments, since ROS launch passes over what no launch file declares.

    Raises ConfigError for a name that is nearly one of ours: with `parms_file:=` all limits would
    be missing. Others are logged, because they may belong to a launch file that includes this one;
    `model`, `params` and `use_sim` are names that such files have.

    :param argv: what the launch command was given, `name:=value` each
    """
    for name in (text.partition(':=')[0] for text in argv if ':=' in text):
        if name in arguments:
            continue
        unknown = f'unknown launch argument {name!r}'
        if meant := nearest(name, arguments, _MISSPELT):
            raise ConfigError(f'{unknown}; did you mean {meant!r}? If it belongs to a launch file '
                              f'that includes this one, give it a name that differs more')
        _logger.warning('%s; it changes nothing here', unknown)
