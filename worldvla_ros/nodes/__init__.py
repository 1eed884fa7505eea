# SPDX-License-Identifier: Apache-2.0
"""ROS 2 nodes: thin shells that convert, call and publish; no torch."""
