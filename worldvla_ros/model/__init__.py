# SPDX-License-Identifier: Apache-2.0
"""Networks, masks and decoding loops: ids in, ids out; knows no words and no robots."""
