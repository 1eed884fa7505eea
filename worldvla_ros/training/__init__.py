# SPDX-License-Identifier: Apache-2.0
"""From demonstrations to checkpoints: tokenise once, train the tokenizer, train the policy."""
