# SPDX-License-Identifier: Apache-2.0
"""Policy and simulator, wired; call /libero_bridge/reset, then publish an instruction."""

from worldvla_ros.graph import DEMO_ARGUMENTS, demo_graph
from worldvla_ros.nodes.launching import describe_launch


def generate_launch_description():
    return describe_launch(DEMO_ARGUMENTS, demo_graph)
