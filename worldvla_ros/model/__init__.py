# SPDX-License-Identifier: Apache-2.0
"""The networks, masks and decoding loops: token ids in, token ids out; knows no words and no robots."""
