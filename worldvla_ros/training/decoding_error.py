# SPDX-License-Identifier: Apache-2.0
"""How far the actions that a policy would do are from the expert's, on held-out samples.

The loss is taken with the expert's own values before each value of an action; a policy has only
what it said itself. Two networks with the same loss may therefore act very differently, and this
is the number that tells: it decodes chunks as the robot gets them.
"""

from collections.abc import Sequence

import numpy as np

from worldvla_ros.model.chunk_decoder import EagerChunkDecoder
from worldvla_ros.model.transformer import Transformer
from worldvla_ros.tokens.action_tokenizer import ActionTokenizer
from worldvla_ros.tokens.sequence import parse_action_chunk
from worldvla_ros.tokens.vocab import ACTION_BLOCK_LENGTH
from worldvla_ros.training.samples import Sample

ERRORS = ('motion_error', 'gripper_error')


def decoding_errors(model: Transformer, samples: Sequence[Sample], tokenizer: ActionTokenizer, *,
                    chunk_mask: bool, choice: str) -> dict[str, float]:
    """Return ERRORS of the chunks decoded for samples of the action branch; empty without any.

    `motion_error` is the root of the mean squared difference of the six motion values, each in
    halves of its range (0: the expert's bins; 0.43: never moving, on libero_goal's experts).
    `gripper_error` is the share of steps at which the gripper is told the other direction. Both
    are of the actions that are labelled, see `labels_that_hold`; samples may have chunks of
    several lengths, as with `data.short_chunks`.

    :param chunk_mask: and `choice`: of the policy, see `PolicySettings`.
    """
    if not samples:
        return {}
    starts = [int(np.argmax(sample.labelled)) for sample in samples]
    wanted = [parse_action_chunk(sample.ids[start:], tokenizer.vocabulary)
              for sample, start in zip(samples, starts, strict=True)]
    decoder = EagerChunkDecoder(model, max(map(len, wanted)), max(starts), chunk_mask, choice)
    pairs = []  # [2, N, 7] of each sample: done and wanted, of the actions that count
    for sample, start, chunk in zip(samples, starts, wanted, strict=True):
        done = decoder.decode(sample.ids[:start]).token_ids.cpu().numpy()
        counts = sample.labelled[start + ACTION_BLOCK_LENGTH * np.arange(len(chunk))]
        pairs.append(np.stack([done[:len(chunk)], chunk])[:, counts])
    values = tokenizer.dequantize(np.concatenate(pairs, axis=1))  # [2, N, 7]
    motion, gripper = np.split(values, [6], axis=-1)
    return {'motion_error': float(np.sqrt(np.mean(np.square(motion[0] - motion[1])))),
            'gripper_error': float(np.mean((gripper[0] > 0) != (gripper[1] > 0)))}
