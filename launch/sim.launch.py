# SPDX-License-Identifier: Apache-2.0
"""See worldvla_ros/graph.py for the nodes and the arguments."""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from worldvla_ros.graph import PACKAGE, SIM_ARGUMENTS, sim_graph


def start(context):
    arguments = {name: LaunchConfiguration(name).perform(context) for name in SIM_ARGUMENTS}
    return [
        Node(package=PACKAGE, executable=spec.executable, name=spec.name, output='screen',
             parameters=[*spec.parameter_files, spec.parameters],
             remappings=list(spec.remappings.items()))
        for spec in sim_graph(arguments)
    ]


def generate_launch_description():
    return LaunchDescription([
        *(DeclareLaunchArgument(name, default_value=argument.default, description=argument.doc,
                                choices=list(argument.choices) or None)
          for name, argument in SIM_ARGUMENTS.items()),
        OpaqueFunction(function=start),
    ])
