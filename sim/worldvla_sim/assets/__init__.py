# SPDX-License-Identifier: Apache-2.0
"""
LIBERO assets of our own: every object and room of the four evaluation suites, made by code.

`pack` writes the pack and keeps it in a cache; `light_robot` gives the Panda lighter looks;
`groceries`, `dishes`, `mugs`, `cookware`, `wine`, `drawers`, `appliances`, `desk` and `arenas` are
the things themselves, drawn with `mjcf`, `rooms`, `shapes`, `textures` and `labels`.  Three
commands look at the result: `check` compares the pack with LIBERO's tasks (`acceptance`,
`forced_goal`), `gallery` takes pictures and `speed` counts control steps per second.
"""
