# SPDX-License-Identifier: Apache-2.0
"""Turn a graph of worldvla_ros/graph.py into a launch description; needs launch and launch_ros."""

from collections.abc import Callable, Mapping

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from worldvla_ros.graph import PACKAGE, Argument, NodeSpec


def describe_launch(arguments: Mapping[str, Argument],
                    graph: Callable[[Mapping[str, str]], list[NodeSpec]]) -> LaunchDescription:
    """Declare the arguments, then start the nodes of the graph with what was given for them."""
    def start(context: LaunchContext) -> list[Node]:
        given = {name: LaunchConfiguration(name).perform(context) for name in arguments}
        return [Node(package=PACKAGE, executable=spec.executable, name=spec.name, output='screen',
                     parameters=[*spec.parameter_files, spec.parameters],
                     remappings=list(spec.remappings.items()))
                for spec in graph(given)]
    return LaunchDescription([
        *(DeclareLaunchArgument(name, default_value=argument.default, description=argument.doc,
                                choices=list(argument.choices) or None)
          for name, argument in arguments.items()),
        OpaqueFunction(function=start)])
