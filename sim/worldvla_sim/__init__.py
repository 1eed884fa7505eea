# SPDX-License-Identifier: Apache-2.0
"""LIBERO for worldvla_ros: asset pack, environment, experts, evaluation and the ROS bridge."""
