# SPDX-License-Identifier: Apache-2.0
"""What a policy node does without ROS and torch: frames and wishes in, one safe command out."""
