# SPDX-License-Identifier: Apache-2.0
"""Ask a running policy what it expects to see, and draw the answer: a client of ~/imagine."""

import argparse
from collections.abc import Sequence
from pathlib import Path
import sys

import cv2
import numpy as np
from numpy.typing import NDArray
import rclpy
from rclpy.exceptions import NameValidationException
from rclpy.node import Node

from worldvla_ros.arguments import positive_int
from worldvla_ros.datatypes import ACTION_DIM
from worldvla_ros.errors import ConfigError, WorldVLAError
from worldvla_ros.graph import POLICY_NODE
from worldvla_ros.inference.scripted_backends import read_chunks
from worldvla_ros.nodes.conversions import image_to_frame
from worldvla_ros.nodes.runtime import start_program
from worldvla_ros.srv import Imagine

TILE_PX = 192
COLUMNS = 6
_CAPTION_PX = 18


def draw(response: Imagine.Response) -> NDArray[np.uint8]:
    """Return one picture (H, W, 3) RGB: the camera frame, then what is imagined, row by row."""
    captions = ['now', *(f'+{step}, entropy {entropy:.2f}'
                         for step, entropy in enumerate(response.entropy, 1))]
    tiles = []
    for message, caption in zip([response.observation, *response.frames], captions, strict=True):
        tile = np.full((TILE_PX + _CAPTION_PX, TILE_PX, 3), 255, np.uint8)
        tile[_CAPTION_PX:] = cv2.resize(image_to_frame(message).image, (TILE_PX, TILE_PX),
                                        interpolation=cv2.INTER_AREA)
        cv2.putText(tile, caption, (4, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1,
                    cv2.LINE_AA)
        tiles.append(tile)
    columns = min(COLUMNS, len(tiles))
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % columns)
    return np.concatenate([np.concatenate(tiles[first:first + columns], axis=1)
                           for first in range(0, len(tiles), columns)])


def ask(node: Node, options: argparse.Namespace) -> Imagine.Response | None:
    """Call the service; None where nobody answers in time, which is said on stderr."""
    actions = np.zeros((0, ACTION_DIM)) if options.actions is None else np.concatenate(
        read_chunks(options.actions))[:options.steps]
    client = node.create_client(Imagine, f'{options.policy}/imagine')
    if not client.wait_for_service(options.wait):
        print(f'nobody serves {client.srv_name} after {options.wait:g} s; is the policy node '
              'running?', file=sys.stderr)
        return None
    answer = client.call_async(Imagine.Request(
        actions=actions.ravel().tolist(), instruction=options.instruction))
    rclpy.spin_until_future_complete(node, answer, timeout_sec=options.timeout)
    if not answer.done():
        print(f'no answer within {options.timeout:g} s; give --timeout', file=sys.stderr)
        return None
    response: Imagine.Response = answer.result()
    return response


def _picture(text: str) -> Path:
    """Return the path of a picture that OpenCV can write."""
    path = Path(text)
    if path.suffix.lower() not in ('.png', '.jpg', '.jpeg'):
        raise argparse.ArgumentTypeError(f'expected a file name with .png or .jpg, got {text!r}')
    return path


def run(options: argparse.Namespace) -> int:
    """Ask, and write what is answered; return the exit status."""
    options.out.parent.mkdir(parents=True, exist_ok=True)
    node = rclpy.create_node('imagine')
    try:
        response = ask(node, options)
    finally:
        node.destroy_node()
    if response is None:
        return 1
    if not response.success:
        print(f'imagine: {response.message}', file=sys.stderr)
    if not response.frames:
        return 1
    if not cv2.imwrite(str(options.out), draw(response)[..., ::-1]):
        raise ConfigError(f'cannot write {options.out}')
    print(f'{len(response.frames)} frames in {response.latency:.1f} s: {options.out}')
    return 0 if response.success else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; ROS arguments (--ros-args ...) are understood, too."""
    parser = argparse.ArgumentParser(prog='imagine', description=__doc__)
    parser.add_argument('--instruction', default='', metavar='TEXT',
                        help='imagine what the policy would do for it; default: what it follows')
    parser.add_argument('--actions', type=Path, metavar='FILE',
                        help='imagine these chunks instead: an .npz file as the demo writes '
                        'beside its videos')
    parser.add_argument('--steps', type=positive_int, default=20,
                        help='of --actions at most; all of each chunk, whatever was executed')
    parser.add_argument('--out', type=_picture, default=Path('imagined.png'),
                        help='picture to write: .png or .jpg')
    parser.add_argument('--policy', default=f'/{POLICY_NODE}', help='name of the policy node')
    parser.add_argument('--wait', type=float, default=5.0, help='for the service to appear [s]')
    parser.add_argument('--timeout', type=float, default=120.0, help='for all frames [s]')
    arguments = sys.argv[1:] if argv is None else list(argv)
    options = start_program(parser, arguments)
    try:
        return run(options)
    except KeyboardInterrupt:
        return 130
    except (WorldVLAError, NameValidationException, OSError) as error:
        print(f'imagine: {str(error).splitlines()[0]}', file=sys.stderr)
        return 2
    finally:
        rclpy.utilities.try_shutdown()
