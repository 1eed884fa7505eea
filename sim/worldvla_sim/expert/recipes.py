# SPDX-License-Identifier: Apache-2.0
"""How each of the 40 tasks is done: skills, with the numbers that the task needs."""

from collections.abc import Callable

from worldvla_ros.errors import SimulationError
from worldvla_sim.expert.fixtures import lay_on_rack, pull_drawer, slide, turn_knob
from worldvla_sim.expert.robot import Robot
from worldvla_sim.expert.skills import Motion, put

Recipe = Callable[[Robot], Motion]
Step = Callable[[Robot], Motion]


def sequence(*steps: Step) -> Recipe:
    """Do steps one after the other, whatever each returns."""
    def recipe(robot: Robot) -> Motion:
        for step in steps:
            yield from step(robot)
        return True
    return recipe


def step(skill: Callable[..., Motion], *arguments: object, **options: object) -> Step:
    """Fix a skill's arguments but for the robot."""
    return lambda robot: skill(robot, *arguments, **options)


_GROCERIES = ('alphabet_soup', 'cream_cheese', 'salad_dressing', 'bbq_sauce', 'ketchup',
              'tomato_sauce', 'butter', 'milk', 'chocolate_pudding', 'orange_juice')
_BASKET = 'basket_1_contain_region'
_BOWL, _PLATE, _BOTTLE = 'akita_black_bowl_1', 'plate_1', 'wine_bottle_1'
_CABINET, _STOVE = 'wooden_cabinet_1', 'flat_stove_1'

RECIPES: dict[tuple[str, int], Recipe] = {
    **{('libero_object', task): sequence(step(put, f'{name}_1', _BASKET, offset=(0, 0, 0.12)))
       for task, name in enumerate(_GROCERIES)},
    **{('libero_spatial', task): sequence(step(put, _BOWL, _PLATE)) for task in range(10)},
    ('libero_goal', 0): sequence(step(pull_drawer, _CABINET, 'middle')),
    ('libero_goal', 1): sequence(step(put, _BOWL, f'{_STOVE}_cook_region', offset=(0, 0, 0.035))),
    ('libero_goal', 2): sequence(step(put, _BOTTLE, f'{_CABINET}_top_side')),
    ('libero_goal', 3): sequence(step(pull_drawer, _CABINET, 'top', opening=0.13),
                                 step(put, _BOWL, f'{_CABINET}_top_region',
                                      offset=(0, 0.02, 0))),
    ('libero_goal', 4): sequence(step(put, _BOWL, f'{_CABINET}_top_side')),
    ('libero_goal', 5): sequence(step(slide, _PLATE, 'main_table_stove_front_region')),
    ('libero_goal', 6): sequence(step(put, 'cream_cheese_1', _BOWL, offset=(0, 0, 0.055))),
    ('libero_goal', 7): sequence(step(turn_knob, _STOVE)),
    ('libero_goal', 8): sequence(step(put, _BOWL, _PLATE)),
    ('libero_goal', 9): sequence(step(lay_on_rack, _BOTTLE, 'wine_rack_1',
                                      'wine_rack_1_top_region')),
}


def recipe_for(suite: str, task: int) -> Recipe:
    """Return the recipe of a task.

    :raises SimulationError: there is none.
    """
    if (suite, task) not in RECIPES:
        raise SimulationError(f'there is no scripted expert for {suite} task {task}')
    return RECIPES[suite, task]
