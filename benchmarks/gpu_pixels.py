# SPDX-License-Identifier: Apache-2.0
"""Parts of bench_gpu.py about pictures: image tokenizer, policy from pixels, imagined frames."""

from collections.abc import Callable, Iterator
from itertools import pairwise

from change_masks import change_masks
from measuring import FLIP_MARGIN, Bench, image_length, quantiles
import numpy as np
from numpy.typing import NDArray
from report import Row, row
import roofline
import torch
from torch import Tensor
from workloads import NUM_WORDS, prompt_of, text_ids, world_prompt_of

from worldvla_ros.datatypes import STATE_DIM, Frame, Observation
from worldvla_ros.model.decoded import DecodedImage
from worldvla_ros.model.engine.frame import StaticFrameEncoder
from worldvla_ros.model.engine.image import StaticImageRows
from worldvla_ros.model.image_decoding import MAX_WINDOW, decode_image_rows, image_capacity
from worldvla_ros.model.image_tokenizer import ImageTokenizer
from worldvla_ros.policy.policy import WorldVLAPolicy
from worldvla_ros.policy.pretrained import Pretrained
from worldvla_ros.policy.settings import PolicySettings
from worldvla_ros.tokens.text_tokenizer import TextTokenizer

NEWEST_MS = {256: 30, 512: 50}  # [px]: [ms], on an H200
FRAMES_PER_S = {256: '>= 8', 512: '>= 2'}  # [px]
TRAINED = 14.2  # codes that worldvla-mini accepts per pass (README.md); random weights fewer
CHANGED_CODES = (0.05, 0.2)  # share of an imagined frame that differs from a made-up draft


def encode(bench: Bench, size: int) -> list[Row]:
    """Time the image tokenizer in float32 and with TensorFloat-32, which the floors are of."""
    rows = []
    card, images = bench.card(), bench.images
    floors = [floor(card, bench.image_config, size)
              for floor in (roofline.encode_ms, roofline.decode_ms)]
    pixels = torch.randint(0, 256, (1, size, size, 3), dtype=torch.uint8)
    codes = {}
    before = torch.backends.cudnn.allow_tf32
    try:
        for name, tf32 in (('float32', False), ('TF32', True)):
            torch.backends.cudnn.allow_tf32 = tf32
            codes[name] = images.encode(pixels)
            rows += quantiles(f'{size} px: VQ-GAN encode, {name}', bench.times(
                lambda i: images.encode(pixels), bench.chunks), floors[0], of_floor=None)
            rows += quantiles(f'{size} px: VQ-GAN encode, {name}, one graph', bench.times(
                _one_graph(images, pixels), bench.chunks), floors[0], of_floor=None)
            rows += quantiles(f'{size} px: VQ-GAN decode, {name}', bench.times(
                lambda i: images.decode(codes['float32']), bench.chunks), floors[1],
                of_floor=None)
    finally:
        torch.backends.cudnn.allow_tf32 = before
    changed = float((codes['float32'] != codes['TF32']).float().mean())
    return [*rows, row(f'{size} px: codes that TF32 changes', changed, 'of all')]


def _one_graph(images: ImageTokenizer, pixels: Tensor) -> Callable[[int], object]:
    encoder = StaticFrameEncoder(images, pixels.shape[1])
    return lambda i: encoder.encode(pixels[0].numpy())


def policy(bench: Bench, size: int, K: int) -> list[Row]:
    """Time `predict_chunk` after `prepare` by the host's clock: pixels in, actions out."""
    bench.free_engine()
    task = 'pick up the milk and place it in the basket'
    settings = PolicySettings('random', trained=False, image_size=size, horizon=K)
    words = _Words.train([task], NUM_WORDS)
    words.first = text_ids(bench.config.vocabulary, NUM_WORDS).start
    policy = WorldVLAPolicy(Pretrained(bench.model, bench.images, words, settings))
    policy.warm_up()
    rng = np.random.default_rng(0)
    frames = [Frame(rng.integers(0, 256, (size, size, 3), np.uint8), i)
              for i in range(bench.chunks + 1)]
    state = np.zeros(STATE_DIM)  # for checkpoints that read it
    totals = []
    for older, newest in pairwise(frames):
        policy.prepare((older,), task)
        if bench.device.type == 'cuda':
            torch.cuda.synchronize()
        chunk = policy.predict_chunk(Observation((older, newest), task, state))
        totals.append(1e3 * chunk.latency.total)
    card, length = bench.card(), len(prompt_of(bench.config.vocabulary, size, 2))
    floor = (roofline.chunk_ms(card, bench.config, length, K, length - image_length(size) - 1)
             + roofline.encode_ms(card, bench.image_config, size))
    return quantiles(f"{size} px: newest frame's pixels -> actions, with image tokenizer",
                     np.array(totals), floor, target_ms=NEWEST_MS.get(size))


class _Words(TextTokenizer):
    """A text tokenizer whose ids begin where those of the vocabulary's text do."""

    first = 0

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text."""
        return [self.first + token for token in super().encode(text)]


def frame(bench: Bench, size: int) -> Iterator[Row]:
    """Time imagined frames: without a draft, with drafts that differ as real frames do, others."""
    side, prompt = size // 16, world_prompt_of(bench.config.vocabulary, size)
    drawing = _Drawing(bench, size, prompt)
    floor = roofline.prefill_ms(bench.card(), bench.config, len(prompt)) + (side ** 2 - 1) * (
        roofline.step_ms(bench.card(), bench.config, len(prompt) + drawing.tokens // 2))
    yield from quantiles(f'{size} px: codes of an imagined frame, a pass per code',
                         bench.slow_times(drawing.run, bench.slow_runs), floor)
    real = change_masks(side)
    rows = drawing.drafted(f'{size} px: changes of real frames', real)
    yield from rows
    per_pass, = (line['value'] for line in rows if line['name'].endswith('time per pass'))
    codes = torch.zeros((1, side, side), dtype=torch.int64)
    again = float(np.median(bench.times(
        lambda i: bench.images.encode(bench.images.decode(codes)), bench.slow_runs)))
    yield row(f'{size} px: frames per second with {TRAINED:g} codes per pass, to pixels and back',
              1e3 / (per_pass * side ** 2 / TRAINED + again), '/s', target=FRAMES_PER_S.get(size))
    rng = np.random.default_rng(0)
    for share in CHANGED_CODES:
        yield from drawing.drafted(f'{size} px: {share:.0%} of codes new, anywhere',
                                   rng.random(real.shape) < share)


class _Drawing:
    """One frame that is imagined again and again."""

    def __init__(self, bench: Bench, size: int, prompt: list[int]) -> None:
        self._bench, self._prompt, self._grid = bench, prompt, (size // 32, size // 32)
        self.tokens = image_capacity(len(prompt), self._grid) - len(prompt) - 3
        bench.free_engine()
        self._engine = StaticImageRows(bench.model, len(prompt) + 3, self.tokens, MAX_WINDOW)
        self._plain = self.run(0)

    def run(self, i: int, draft: NDArray[np.int64] | None = None) -> DecodedImage:
        """Imagine the frame."""
        return decode_image_rows(self._engine, self._prompt, self._grid, draft=draft)

    def drafted(self, name: str, masks: NDArray[np.bool_]) -> list[Row]:
        """Time the frame with drafts that are wrong where masks [n, side, side] say so."""
        codes = self._plain.codes.cpu().numpy()
        wrong = (codes + 1) % self._bench.config.vocabulary.num_codes
        drafts = np.where(masks, wrong, codes)
        results: list[DecodedImage] = []
        times = self._bench.slow_times(
            lambda i: results.append(self.run(i, drafts[i])),
            min(len(drafts), 3 * self._bench.slow_runs))
        differing = ((result.codes != self._plain.codes).flatten().nonzero() for result in results)
        margins = [float(self._plain.margin.flatten()[places[0]]) for places in differing
                   if len(places)]
        passes = np.array([result.passes for result in results])
        return [
            *quantiles(f'{name}, codes of an imagined frame', times),
            row(f'{name}, frames per second (p50)', 1e3 / float(np.median(times)), '/s',
                runs=len(times)),
            row(f'{name}, codes accepted per pass', float(np.mean(codes.size / passes)), 'codes'),
            row(f'{name}, time per pass', float(np.median(times / passes[-len(times):])), 'ms'),
            row(f'{name}, frames that differ from those without draft',
                len(margins) / len(results), 'of all', runs=len(results)),
            row(f'{name}, largest margin at a first difference', max(margins, default=0.0),
                'logit', target=f'<= {FLIP_MARGIN}')]
