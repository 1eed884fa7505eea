# SPDX-License-Identifier: Apache-2.0
"""Small demonstrations, an image tokenizer and a store for the tests of training."""

from dataclasses import replace
import json

import h5py
import numpy as np
from scipy.spatial.transform import Rotation
import torch

from worldvla_ros.arm_state import arm_state
from worldvla_ros.model.image_tokenizer import ImageTokenizer, save_image_tokenizer
from worldvla_ros.model.vqgan import ImageTokenizerConfig
from worldvla_ros.training.episodes import Episode
from worldvla_ros.training.store_writing import write_store

IMAGE_SIZE = 64  # [px], so 4 x 4 codes
INSTRUCTIONS = ('pick up the red block', 'open the green drawer')


def tiny_tokenizer(seed=0, num_codes=64):
    config = ImageTokenizerConfig(embed_dim=4, n_embed=num_codes, z_channels=4, ch=8,
                                  ch_mult=(1, 1, 1, 1, 1), num_res_blocks=1, norm_groups=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = ImageTokenizer(config).requires_grad_(False).eval()
        torch.nn.init.normal_(tokenizer.quantize.embedding.weight, std=0.3)
    return tokenizer


def episode(number=0, steps=12, instruction=INSTRUCTIONS[0], task='pick', success=True):
    """Return an episode of noise pictures and smooth actions."""
    rng = np.random.default_rng(number)
    frames = rng.integers(0, 256, (steps, IMAGE_SIZE // 16, IMAGE_SIZE // 16, 3), dtype=np.uint8)
    frames = frames.repeat(16, 1).repeat(16, 2)
    actions = 0.9 * np.sin(rng.uniform(0, 6, 7) + np.arange(steps)[:, None] * 0.5)
    actions[:, 6] = np.where(np.arange(steps) < steps // 2, -1.0, 1.0)
    states = arm_state(0.05 * actions[:, :3].cumsum(0), Rotation.from_rotvec(
        [np.pi, 0, 0]) * Rotation.from_rotvec(0.1 * actions[:, 3:6]),
        0.04 * np.stack([actions[:, 6], -actions[:, 6]], 1))
    return Episode(f'demo_{number}', task, instruction, frames, actions, actions.copy(), success,
                   states)


def with_wrist(one):
    """Return an episode with pictures of a wrist camera, which are others than its frames."""
    return replace(one, wrist=np.ascontiguousarray(255 - one.frames[:, ::-1]))


def with_chunks(one, steps=(3, 4), length=5):
    """Return an episode in which a policy had the arm, and the expert was asked at some steps."""
    chunks = np.full((len(one.actions), length, 7), np.nan)
    for step in steps:
        chunks[step] = np.linspace(-0.9, 0.9, length)[:, None] * (1 - 0.1 * step)
    return replace(one, executed=np.clip(one.actions + 0.6, -1, 1), chunks=chunks)


def write_hdf5(path, episodes, layout='ours'):
    """Write episodes as our recorder does, as LIBERO's converter does, or as replayed files are.

    The states of the arm are those of a hand that points down, at the robot's base. The converter
    adds an action before the first frame and what was seen after the last action.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, 'w') as file:
        data = file.create_group('data')
        for one in episodes:
            group, steps, base = data.create_group(one.name), len(one.actions), (-0.66, 0.0, 0.912)
            actions, frames, wrist = one.actions, one.frames, one.wrist
            hands = np.tile((0.04, -0.04, *base, 1.0, 0.0, 0.0, 0.0), (steps, 1))
            joints = np.cumsum(np.full((steps + 2, 7), 0.01), 0)
            before = seen = joints[1:-1]
            info = {'language_instruction': one.instruction}
            if layout == 'converter':
                actions = np.concatenate([-actions[:1], actions])
                frames = np.concatenate([frames, 255 - frames[-1:]])
                wrist = wrist if wrist is None else np.concatenate([wrist, 255 - wrist[-1:]])
                hands = np.concatenate([hands, hands[:1] + 1])
                before, seen = joints[:-1], joints[1:]
                info['problem_name'] = 'libero_tabletop_manipulation'
                data.attrs['problem_info'] = json.dumps(info)
                data.attrs['macros_image_convention'] = 'opengl'
            if layout == 'ours':
                group['executed_actions'] = one.executed
                group.attrs['problem_info'] = json.dumps(info)
                group.attrs['base_position'] = base
                data.attrs['macros_image_convention'] = 'opengl'
            group['actions'], group['robot_states'] = actions, hands
            group['dones'] = np.r_[np.zeros(len(actions) - 1), one.success].astype(np.uint8)
            group['obs/agentview_rgb'], group['obs/joint_states'] = frames[:, ::-1, ::-1], seen
            if one.chunks is not None:
                group['chunk_labels'] = one.chunks
            if wrist is not None:
                group['obs/eye_in_hand_rgb'] = wrist[:, ::-1, ::-1]
            group['states'] = np.hstack([np.arange(len(before))[:, None], before, before])


def small_store(folder, num_episodes=4, steps=12, wrist=False):
    """Write a tokenizer and a store of two tasks; return both folders."""
    tokenizer = tiny_tokenizer()
    save_image_tokenizer(tokenizer, folder / 'tokenizer')
    episodes = [episode(i, steps, INSTRUCTIONS[i % 2], f'task{i % 2}')
                for i in range(num_episodes)]
    episodes = [with_wrist(one) for one in episodes] if wrist else episodes
    write_store(folder / 'store', episodes, tokenizer, IMAGE_SIZE)
    return folder / 'store', folder / 'tokenizer'
