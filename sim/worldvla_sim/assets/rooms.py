# SPDX-License-Identifier: Apache-2.0
"""Write one LIBERO room as MJCF: floor, walls, lamps, and scenery that is only seen.

LIBERO replaces the files of the textures `texplane` and `tex-wall` by the room's style, resizes
the table of the table-top rooms, and sets the cameras itself; the names are its interface.
"""

from xml.etree import ElementTree as ET

from worldvla_sim.assets.mjcf import Color, Vector, numbers
from worldvla_sim.assets.textures import Image, to_png

_STILL = {'contype': '0', 'conaffinity': '0', 'group': '1', 'mass': '0'}


class Room:
    """The MJCF of one room."""

    def __init__(self, name: str, floor: str, wall: str) -> None:
        self.name = name
        self._root = ET.Element('mujoco', {'model': name})
        self._asset = ET.SubElement(self._root, 'asset')
        self.world = ET.SubElement(self._root, 'worldbody')
        self._images: dict[str, Image] = {}
        ET.SubElement(self._asset, 'texture', {
            'type': 'skybox', 'builtin': 'gradient', 'rgb1': '0.9 0.9 1', 'rgb2': '0.2 0.3 0.4',
            'width': '64', 'height': '64',
        })
        self._textured('texplane', 'floorplane', floor, 2.0)
        self._textured('tex-wall', 'walls_mat', wall, 1.0)
        self._walls()
        self._lights()

    def _textured(self, texture: str, material: str, file: str, repeats: float) -> None:
        ET.SubElement(self._asset, 'texture', {
            'name': texture, 'type': '2d', 'file': f'../textures/{file}.png',
        })
        ET.SubElement(self._asset, 'material', {
            'name': material, 'texture': texture, 'texuniform': 'true',
            'texrepeat': numbers((repeats, repeats)), 'specular': '0.1', 'shininess': '0.1',
            'reflectance': '0',
        })

    def material(self, name: str, look: Color | Image) -> str:
        """Add a plain material, or one whose image covers every side of a box."""
        attributes = {
            'name': name, 'specular': '0.1', 'shininess': '0.1', 'reflectance': '0'}
        if isinstance(look, tuple):
            attributes['rgba'] = numbers((*look, 1))
        else:
            file = f'{self.name}-{name}.png'
            self._images[file] = look
            ET.SubElement(self._asset, 'texture', {
                'name': f'tex-{name}', 'type': 'cube', 'file': f'../textures/{file}',
            })
            attributes['texture'] = f'tex-{name}'
        ET.SubElement(self._asset, 'material', attributes)
        return name

    def body(self, name: str, pos: Vector = (0, 0, 0)) -> ET.Element:
        """Add a body that LIBERO looks up by name."""
        return ET.SubElement(self.world, 'body', {'name': name, 'pos': numbers(pos)})

    def floor(self, parent: ET.Element) -> None:
        """Add the ground plane at z = 0; LIBERO wants it in the world or in a body of its own."""
        ET.SubElement(parent, 'geom', {
            'name': 'floor', 'type': 'plane', 'size': '3 3 0.125', 'pos': '0 0 0', 'condim': '3',
            'group': '1', 'material': 'floorplane',
        })

    def support(
        self, size: Vector, pos: Vector, *, parent: ET.Element, name: str | None = None,
    ) -> None:
        """Add an invisible box that carries things."""
        names = {} if name is None else {'name': name}
        ET.SubElement(parent, 'geom', {
            **names, 'type': 'box', 'size': numbers(size), 'pos': numbers(pos), 'group': '0',
            'friction': '1 0.005 0.0001', 'rgba': '0 0 0 0',
        })

    def scenery(
        self, shape: str, size: Vector, pos: Vector, material: str, quat: Vector | None = None, *,
        name: str | None = None, parent: ET.Element | None = None,
    ) -> None:
        """Add a geom that is only seen."""
        attributes = {} if quat is None else {'quat': numbers(quat)}
        if name is not None:
            attributes['name'] = name
        ET.SubElement(self.world if parent is None else parent, 'geom', {
            'type': shape, 'size': numbers(size), 'pos': numbers(pos), 'material': material,
            **attributes, **_STILL,
        })

    def _walls(self) -> None:
        for name, pos, size in (
            ('left', (0.5, 3, 1.5), (2.5, 0.01, 1.5)), ('right', (0.5, -3, 1.5), (2.5, 0.01, 1.5)),
            ('rear', (-2, 0, 1.5), (0.01, 3, 1.5)), ('front', (3, 0, 1.5), (0.01, 3, 1.5)),
        ):
            ET.SubElement(self.world, 'geom', {
                'name': f'wall_{name}_visual', 'type': 'box', 'pos': numbers(pos),
                'size': numbers(size), 'material': 'walls_mat', **_STILL,
            })

    def _lights(self) -> None:
        for name, pos, direction in (
            ('light1', (1.6, 1.0, 3.2), (-0.5, -0.3, -1)),  # from the cameras' side
            ('light2', (-1.5, -2.0, 4.0), (0.4, 0.4, -1)),
        ):
            ET.SubElement(self.world, 'light', {
                'name': name, 'pos': numbers(pos), 'dir': numbers(direction), 'cutoff': '60',
                'directional': 'false', 'castshadow': 'false', 'ambient': '0.1 0.1 0.1',
                'diffuse': '0.52 0.52 0.52', 'specular': '0.3 0.3 0.3',
            })

    def files(self) -> dict[str, bytes]:
        """Return the room's files: path inside the pack -> content."""
        ET.indent(self._root)
        files = {f'scenes/{self.name}.xml': ET.tostring(self._root)}
        for file, image in self._images.items():
            files[f'textures/{file}'] = to_png(image)
        return files
