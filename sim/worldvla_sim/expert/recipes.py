# SPDX-License-Identifier: Apache-2.0
"""How each of the 40 tasks is done: skills, with the numbers that the task needs."""

from collections.abc import Callable

from worldvla_ros.errors import SimulationError
from worldvla_sim.expert.fixtures import close_door, pull_drawer, push_drawer, turn_knob
from worldvla_sim.expert.picking import put
from worldvla_sim.expert.placing import lay_on_rack, put_in_microwave, slide
from worldvla_sim.expert.robot import Robot
from worldvla_sim.expert.skills import Motion

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


def _into_basket(name: str) -> Step:
    return step(put, name, 'basket_1_contain_region', offset=(0, 0, 0.12))


_GROCERIES = ('alphabet_soup', 'cream_cheese', 'salad_dressing', 'bbq_sauce', 'ketchup',
              'tomato_sauce', 'butter', 'milk', 'chocolate_pudding', 'orange_juice')
_BOWL, _PLATE, _BOTTLE = 'akita_black_bowl_1', 'plate_1', 'wine_bottle_1'
_CABINET, _STOVE = 'wooden_cabinet_1', 'flat_stove_1'
_BURNER = f'{_STOVE}_cook_region'

RECIPES: dict[tuple[str, int], Recipe] = {
    **{('libero_object', task): sequence(_into_basket(f'{name}_1'))
       for task, name in enumerate(_GROCERIES)},
    **{('libero_spatial', task): sequence(step(put, _BOWL, _PLATE)) for task in range(10)},
    ('libero_goal', 0): sequence(step(pull_drawer, _CABINET, 'middle')),
    ('libero_goal', 1): sequence(step(put, _BOWL, _BURNER, offset=(0, 0, 0.035))),
    ('libero_goal', 2): sequence(step(put, _BOTTLE, f'{_CABINET}_top_side',  # its near edge:
                                      offset=(-0.05, 0.03, 0))),  # the middle is out of reach
    ('libero_goal', 3): sequence(step(pull_drawer, _CABINET, 'top', opening=0.13),
                                 step(put, _BOWL, f'{_CABINET}_top_region',
                                      offset=(0, 0.02, 0))),
    ('libero_goal', 4): sequence(step(put, _BOWL, f'{_CABINET}_top_side')),
    ('libero_goal', 5): sequence(step(slide, _PLATE, 'main_table_stove_front_region',
                                 detour=(0.07, 0.0))),  # the cream cheese is on the straight way
    ('libero_goal', 6): sequence(step(put, 'cream_cheese_1', _BOWL, offset=(0, 0, 0.055))),
    ('libero_goal', 7): sequence(step(turn_knob, _STOVE)),
    ('libero_goal', 8): sequence(step(put, _BOWL, _PLATE)),
    ('libero_goal', 9): sequence(step(lay_on_rack, _BOTTLE, 'wine_rack_1',
                                      'wine_rack_1_top_region')),
    ('libero_10', 0): sequence(_into_basket('alphabet_soup_1'), _into_basket('tomato_sauce_1')),
    ('libero_10', 1): sequence(_into_basket('cream_cheese_1'), _into_basket('butter_1')),
    ('libero_10', 2): sequence(step(turn_knob, _STOVE),
                               step(put, 'moka_pot_1', _BURNER, offset=(0, 0, 0.100))),
    ('libero_10', 3): sequence(step(put, _BOWL, 'white_cabinet_1_bottom_region',
                                    offset=(0, -0.03, 0.02)),
                               step(push_drawer, 'white_cabinet_1', 'bottom')),
    ('libero_10', 4): sequence(step(put, 'porcelain_mug_1', 'plate_1'),
                               step(put, 'white_yellow_mug_1', 'plate_2')),
    ('libero_10', 5): sequence(step(put, 'black_book_1', 'desk_caddy_1_back_contain_region',
                                    offset=(0, 0, -0.03), fingers=(1, 0, 0))),
    ('libero_10', 6): sequence(step(put, 'porcelain_mug_1', 'plate_1'),
                               step(put, 'chocolate_pudding_1',
                                    'living_room_table_plate_right_region',
                                    offset=(0, 0, 0.045))),
    ('libero_10', 7): sequence(_into_basket('alphabet_soup_1'), _into_basket('cream_cheese_1')),
    ('libero_10', 8): sequence(step(put, 'moka_pot_1', _BURNER, offset=(0.058, 0, 0.100)),
                               step(put, 'moka_pot_2', _BURNER, offset=(-0.058, 0, 0.100))),
    ('libero_10', 9): sequence(step(put_in_microwave, 'white_yellow_mug_1', 'microwave_1',
                                    'microwave_1_heating_region'),
                               step(close_door, 'microwave_1')),
}


def recipe_for(suite: str, task: int) -> Recipe:
    """Return the recipe of a task.

    :raises SimulationError: there is none.
    """
    if (suite, task) not in RECIPES:
        raise SimulationError(f'there is no scripted expert for {suite} task {task}')
    return RECIPES[suite, task]
