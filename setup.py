# SPDX-License-Identifier: Apache-2.0
"""Install the ROS-free core with pip; a ROS workspace builds with colcon and CMakeLists.txt."""

from pathlib import Path
from xml.etree import ElementTree

from setuptools import find_namespace_packages, setup

ROOT = Path(__file__).parent


def requirements(name: str) -> list[str]:
    lines = (ROOT / 'requirements' / name).read_text().splitlines()
    return [line for line in lines if line and not line.startswith('#')]


setup(
    name='worldvla_ros',
    version=ElementTree.parse(ROOT / 'package.xml').findtext('version'),
    description='Run, train and trust a WorldVLA policy and world model on a ROS 2 robot.',
    license='Apache-2.0',
    python_requires='>=3.11',
    packages=[
        *find_namespace_packages('.', include=['worldvla_ros', 'worldvla_ros.*']),
        *find_namespace_packages('sim', include=['worldvla_sim', 'worldvla_sim.*']),
    ],
    package_data={'worldvla_ros': ['checkpoints/**/*']},
    package_dir={'worldvla_sim': 'sim/worldvla_sim'},
    install_requires=[*requirements('core.txt'), *requirements('numpy2.txt')],
    extras_require={'sim': requirements('sim.txt'), 'dev': requirements('dev.txt'),
                    'ray': requirements('optional/ray.txt'),
                    'tensorboard': requirements('optional/tensorboard.txt')},
)
