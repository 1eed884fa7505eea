# SPDX-License-Identifier: Apache-2.0
"""The policy node on its own, for a robot or for sim.launch.py."""

from worldvla_ros.graph import POLICY_ARGUMENTS, policy_graph
from worldvla_ros.nodes.launching import describe_launch


def generate_launch_description():
    return describe_launch(POLICY_ARGUMENTS, policy_graph)
