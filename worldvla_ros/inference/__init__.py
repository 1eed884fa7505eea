# SPDX-License-Identifier: Apache-2.0
"""Where a chunk comes from: the worker process that owns torch, and the node's backends."""
