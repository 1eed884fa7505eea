# SPDX-License-Identifier: Apache-2.0
"""ROS 2 programs of the simulation: the bridge and the demo."""
