# SPDX-License-Identifier: Apache-2.0
"""Composes tokens and model into a policy and a world model; start reading at policy.py."""
