# SPDX-License-Identifier: Apache-2.0
"""Demonstrations on a robot: what came on its topics, put in step, in the files training reads."""
