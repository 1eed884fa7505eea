# SPDX-License-Identifier: Apache-2.0
"""Token ids and sequence layout: integers only, NumPy only, no torch and no ROS."""
