# SPDX-License-Identifier: Apache-2.0
"""LIBERO as a robot on ROS 2 topics."""

from worldvla_ros.graph import SIM_ARGUMENTS, sim_graph
from worldvla_ros.nodes.launching import describe_launch


def generate_launch_description():
    return describe_launch(SIM_ARGUMENTS, sim_graph)
