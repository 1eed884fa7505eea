# SPDX-License-Identifier: Apache-2.0
"""Frames pass through shared memory unchanged, from any memory layout, and leave nothing."""

import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from worldvla_ros.datatypes import Frame
from worldvla_ros.errors import FrameError
from worldvla_ros.inference.shared_frames import SharedFrames

CAPACITY = 100_000


@pytest.fixture(scope='module')
def both_ends():
    """The writer's block, and the same memory as another process would open it."""
    writer = SharedFrames(CAPACITY)
    reader = SharedFrames(CAPACITY, os.dup(writer.descriptor))
    yield writer, reader
    reader.close()
    writer.close()


def noise(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


LAYOUTS = {
    'plain': lambda: noise(8, 6),
    'bgr view': lambda: noise(8, 6)[..., ::-1],
    'bgra view': lambda: noise(8, 6, 4)[..., 2::-1],
    'rgba view': lambda: noise(8, 6, 4)[..., :3],
    'mono broadcast': lambda: np.broadcast_to(noise(8, 6, 1), (8, 6, 3)),
    'crop': lambda: noise(20, 30)[3:11, 7:13],
    'padded rows': lambda: noise(8, 20, 1).reshape(8, 20)[:, :18].reshape(8, 6, 3),
    'upside down': lambda: noise(8, 6)[::-1, ::-1],
    'transposed': lambda: noise(6, 8).transpose(1, 0, 2),
    'one pixel': lambda: noise(1, 1),
}


@pytest.mark.parametrize('layout', LAYOUTS)
def test_a_frame_of_any_memory_layout_arrives_unchanged(both_ends, layout):
    writer, reader = both_ends
    image = LAYOUTS[layout]()
    frame, = reader.read(writer.write((Frame(image, 123),)))
    np.testing.assert_array_equal(frame.image, image)
    assert frame.stamp_ns == 123


def test_a_picture_of_the_wrist_camera_travels_with_its_frame(both_ends):
    writer, reader = both_ends
    frames = (Frame(noise(8, 6), 1, noise(4, 10, seed=1)), Frame(noise(5, 7, seed=2), 2),
              Frame(noise(3, 3, seed=3), 3, noise(9, 2, seed=4)[::-1]))
    for there, sent in zip(reader.read(writer.write(frames)), frames, strict=True):
        np.testing.assert_array_equal(there.image, sent.image)
        assert there.stamp_ns == sent.stamp_ns and (there.wrist is None) == (sent.wrist is None)
        if sent.wrist is not None:
            np.testing.assert_array_equal(there.wrist, sent.wrist)
    side = 150
    with pytest.raises(FrameError, match=r'\(150, 150, 3\), \(150, 150, 3\) need 135000 bytes'):
        writer.write((Frame(noise(side, side), 1, noise(side, side)),))


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40),
                          st.integers(-2**62, 2**62)), max_size=6))
def test_several_frames_of_several_sizes_do_not_touch_each_other(both_ends, shapes):
    writer, reader = both_ends
    frames = tuple(Frame(noise(height, width, seed=index), stamp)
                   for index, (height, width, stamp) in enumerate(shapes))
    read = reader.read(writer.write(frames))
    assert [one.stamp_ns for one in read] == [one.stamp_ns for one in frames]
    for one, other in zip(read, frames, strict=True):
        np.testing.assert_array_equal(one.image, other.image)


def test_what_was_read_stays_when_the_next_request_is_written(both_ends):
    writer, reader = both_ends
    first, = reader.read(writer.write((Frame(noise(8, 8, seed=1), 1),)))
    writer.write((Frame(noise(8, 8, seed=2), 2),))
    np.testing.assert_array_equal(first.image, noise(8, 8, seed=1))


def test_frames_that_fill_the_memory_to_the_last_byte_fit(both_ends):
    writer, reader = both_ends
    image = noise(1, CAPACITY // 3)
    frame, = reader.read(writer.write((Frame(image, 0),)))
    np.testing.assert_array_equal(frame.image, image)


@pytest.mark.parametrize('shapes', [[(1, CAPACITY // 3 + 1)], 2 * [(150, 120)]])
def test_frames_that_do_not_fit_are_refused_with_what_to_do(both_ends, shapes):
    frames = tuple(Frame(noise(*shape), 0) for shape in shapes)
    with pytest.raises(FrameError, match=rf'{shapes[0][1]}, 3\).*{CAPACITY}.*frame_memory_mb'):
        both_ends[0].write(frames)


def held():
    """Count the open descriptors and the mapped blocks of this process."""
    return (len(list(Path('/proc/self/fd').iterdir())),
            Path('/proc/self/maps').read_text().count('worldvla_frames'))


def test_nothing_is_left_after_close_which_may_be_repeated():
    before = held()
    for _ in range(5):
        frames = SharedFrames(CAPACITY)
        frames.read(frames.write((Frame(noise(8, 8), 0),)))
        frames.close()
        frames.close()
    assert held() == before


def test_a_child_inherits_the_memory_only_if_it_is_given(both_ends):
    assert not os.get_inheritable(both_ends[0].descriptor)
