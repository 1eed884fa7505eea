# SPDX-License-Identifier: Apache-2.0
"""Scripted experts for all 40 tasks: privileged state in, one action per control step out.

Reads bottom-up: `scene` (where things are), `robot` (a pose to reach -> an action), `grasps`
(where to take hold), `skills` (generators of actions), `holding` (how to take hold), what is done
with what is held (`picking`, `placing`, `fixtures`), `recipes` (skills per task), `policy`.
"""
