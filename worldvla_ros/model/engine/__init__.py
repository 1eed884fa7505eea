# SPDX-License-Identifier: Apache-2.0
"""The network with every shape fixed, so that a GPU can replay whole chunks as one CUDA graph.

linear.py, layers.py: fused weights, bfloat16 or 8-bit; network.py: fixed KV cache and passes;
graphs.py: capture and replay; inputs.py: what changes between replays; chunk.py, image.py: what
`generate.py` and `image_decoding.py` do, in these passes; drafts.py: the guess of a chunk. All of
it also runs without a GPU, eagerly, which is how its results are tested.
"""
