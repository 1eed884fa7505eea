# SPDX-License-Identifier: Apache-2.0
"""Limits and watchdogs between the policy and the robot: pure functions, no torch, no ROS."""
