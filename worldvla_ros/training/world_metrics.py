# SPDX-License-Identifier: Apache-2.0
"""`python -m worldvla_ros.training.world_metrics`: how well a checkpoint imagines.

From a real frame of a held-out episode and the actions that were executed from there on, the
world model imagines the frames that follow, each from the one before it, or, where its
`world_stride` is longer, from the one that many steps ago. They are compared with the real ones,
beside three references:

    copy last frame      the real frame of the start, unchanged: nothing moves
    copy, tokenized      the same, encoded and decoded: as blurred as what is imagined
    tokenizer ceiling    the real frames, encoded and decoded: what the image tokenizer loses

The codes of an imagined frame are the next input as they are; with --reencode they go through
pixels and the encoder, as in the public evaluation of RynnVLA-002. Rollouts are kept in the
folder of the results as they are made, so a stopped run goes on, and metrics whose weights come
later cost no second imagination.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
import hashlib
from pathlib import Path
import sys

import numpy as np
from numpy.typing import NDArray
import torch
from tqdm import tqdm

from worldvla_ros.arguments import positive_int
from worldvla_ros.datatypes import Frame
from worldvla_ros.errors import WorldVLAError
from worldvla_ros.model.image_tokenizer import tokenizer_fingerprint
from worldvla_ros.policy.pretrained import Pretrained
from worldvla_ros.policy.world_model import WorldModel
from worldvla_ros.training.earlier_splits import earlier_splits, leak_warning
from worldvla_ros.training.failures import explain_os_error
from worldvla_ros.training.frames import differing
from worldvla_ros.training.held_out_clips import Clip, load_clips, split_of_checkpoint
from worldvla_ros.training.parallel import pick_device
from worldvla_ros.training.splits import SPLITS
from worldvla_ros.training.video_metrics import (
    MIN_FVD_FRAMES,
    PerceptualDistance,
    Video,
    VideoFeatures,
    squared_errors,
    ssim,
)
from worldvla_ros.training.world_report import (
    CEILING,
    CODED_COPY,
    COPY,
    MODEL,
    ClipMeasures,
    CodesRight,
    Report,
    StripRow,
    write_report,
)
from worldvla_ros.whole_files import write_whole

FRAMES_PER_PASS = 16  # through the image tokenizer at once: bounds the memory


@dataclass(frozen=True)
class Judges:
    """The metrics that need weights, as far as they were given."""

    lpips: Callable[[Sequence[Video], Video], NDArray[np.float64]] | None = None
    features: Callable[[Video], NDArray[np.float64]] | None = None

    @classmethod
    def load(cls, lpips: Path | None, i3d: Path | None, device: str) -> 'Judges':
        """Load what there are files for; CheckpointError for another kind of file."""
        return cls(PerceptualDistance(lpips, device) if lpips else None,
                   VideoFeatures(i3d, device) if i3d else None)


class Rollouts:
    """Imagined code indices, imagined once and kept in files.

    A file is named after all that its content depends on, so it is never taken for another's.
    """

    def __init__(self, folder: Path, pretrained: Pretrained, *, reencode: bool = False) -> None:
        self._folder = folder
        self._world = WorldModel(pretrained, reencode=reencode)
        self._made_by = (f'{pretrained.description} {pretrained.settings} reencode={reencode} '
                         f'{tokenizer_fingerprint(pretrained.image_tokenizer)}')

    def codes(self, clip: Clip, progress: tqdm) -> NDArray[np.int64]:
        """Return the imagined code indices (T, 2h, 2w); counts frames on the progress bar."""
        digest = hashlib.sha256(self._made_by.encode())
        for array in (clip.frames[0], clip.actions):
            digest.update(array.tobytes())
        path = self._folder / f'{digest.hexdigest()[:16]}.npy'
        if path.exists():
            codes: NDArray[np.int64] = np.load(path)
            progress.total -= len(codes)
            progress.refresh()
            return codes
        codes = np.stack(list(self._imagined(clip, progress)))
        self._folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda draft: np.save(draft, codes))
        return codes

    def _imagined(self, clip: Clip, progress: tqdm) -> Iterator[NDArray[np.int64]]:
        self._world.reset(Frame(clip.frames[0], 0))
        for action in clip.actions:
            yield self._world.step(action).codes
            progress.update()


def measure(clip: Clip, codes: NDArray[np.int64], pretrained: Pretrained, judges: Judges,
            horizons: tuple[int, ...]) -> tuple[dict[str, ClipMeasures], StripRow]:
    """Compare what was imagined of a clip, and the references, with its real frames.

    :param codes: imagined code indices (T, 2h, 2w).
    """
    real = clip.frames[1:]
    moved = differing(real, clip.frames[:1])
    long_enough = [steps for steps in horizons if steps >= MIN_FVD_FRAMES]

    def features(video: Video) -> dict[int, NDArray[np.float64]]:
        return {} if judges.features is None else {
            steps: judges.features(video[:steps]) for steps in long_enough}

    first, real_codes = np.split(encode(pretrained, clip.frames), [1])
    copied = np.repeat(first, len(real), axis=0)
    predicted = {
        MODEL: (decode(pretrained, codes), codes),
        COPY: (np.repeat(clip.frames[:1], len(real), axis=0), copied),
        CODED_COPY: (np.repeat(decode(pretrained, first), len(real), axis=0), copied),
        CEILING: (decode(pretrained, real_codes), real_codes)}
    real_features = features(real)
    distances = [None] * len(predicted) if judges.lpips is None else judges.lpips(
        [video for video, _ in predicted.values()], real)
    measures = {}
    for (name, (video, video_codes)), lpips in zip(predicted.items(), distances, strict=True):
        errors = squared_errors(video, real)
        measures[name] = ClipMeasures(
            error=errors.mean((1, 2)), moved_error=(errors * moved).sum((1, 2)),
            moved_pixels=moved.sum((1, 2)), ssim=ssim(video, real),
            codes=CodesRight.count(video_codes, real_codes, first),
            lpips=lpips,
            features=features(video), real_features=real_features)
    return measures, StripRow(clip.title, clip.frames, predicted[MODEL][0])


def encode(pretrained: Pretrained, frames: Video) -> NDArray[np.int64]:
    """Return the code indices (T, 2h, 2w) of frames at the size of the model."""
    tokenizer = pretrained.image_tokenizer
    return np.concatenate([tokenizer.encode(frames[first:first + FRAMES_PER_PASS]).cpu().numpy()
                           for first in range(0, len(frames), FRAMES_PER_PASS)])


def decode(pretrained: Pretrained, codes: NDArray[np.int64]) -> Video:
    """Return the frames (T, S, S, 3) of code indices; inverse of `encode` up to its loss."""
    tokenizer = pretrained.image_tokenizer
    return np.concatenate([tokenizer.decode(codes[first:first + FRAMES_PER_PASS]).cpu().numpy()
                           for first in range(0, len(codes), FRAMES_PER_PASS)])


def world_metrics(options: argparse.Namespace) -> Report:
    """Measure as the command's options say, write the results, and return them."""
    torch.set_num_threads(options.threads)
    split = split_of_checkpoint(options.checkpoint, options.split)
    if warning := leak_warning(split, earlier_splits(options.checkpoint, split)):
        print(f'world_metrics: {warning}', file=sys.stderr)
    device = pick_device(options.device)
    judges = Judges.load(options.lpips_weights, options.i3d_weights, device)
    pretrained = Pretrained.load(options.checkpoint, device=device, dtype=options.dtype)
    steps = max(options.horizons)
    found = load_clips(options.demonstrations, image_size=pretrained.settings.image_size,
                       steps=steps, most=options.clips, order=split,
                       drop_no_ops=options.drop_no_ops, only=options.only)
    rollouts = Rollouts(options.out / 'rollouts', pretrained, reencode=options.reencode)
    with _progress('imagining', 'frame', steps * len(found.clips)) as progress:
        imagined = [rollouts.codes(clip, progress) for clip in found.clips]
    measures: dict[str, list[ClipMeasures]] = {
        name: [] for name in (MODEL, COPY, CODED_COPY, CEILING)}
    strips: list[StripRow] = []
    with _progress('measuring', 'clip', len(found.clips)) as progress:
        for clip, codes in zip(found.clips, imagined, strict=True):
            measured, strip = measure(clip, codes, pretrained, judges, options.horizons)
            for name, of_clip in measured.items():
                measures[name].append(of_clip)
            strips += [strip] if len(strips) < options.strips else []
            progress.update()
    report = Report(
        checkpoint=f'{options.checkpoint}: {pretrained.description}',
        demonstrations=str(options.demonstrations), clips=[clip.title for clip in found.clips],
        held_out_episodes=found.held_out_episodes, too_short_episodes=found.too_short,
        image_size=pretrained.settings.image_size, reencode=options.reencode,
        split=split, drop_no_ops=options.drop_no_ops, horizons=options.horizons,
        measures=measures)
    write_report(report, strips, options.out)
    return report


def _progress(what: str, unit: str, total: int) -> tqdm:
    return tqdm(desc=what, unit=unit, total=total, file=sys.stderr, dynamic_ncols=True,
                mininterval=0.5 if sys.stderr.isatty() else 30.0)


def _horizons(text: str) -> tuple[int, ...]:
    try:
        horizons = tuple(sorted({int(part) for part in text.split(',')}))
    except ValueError:
        horizons = (0,)
    if horizons[0] < 1:
        raise argparse.ArgumentTypeError(f'expected steps such as 1,10,50, got {text!r}')
    return horizons


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options of the command; exits with usage on wrong ones."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--checkpoint', type=Path, required=True, help='folder of the weights')
    parser.add_argument('--demonstrations', type=Path, required=True,
                        help='LIBERO-format HDF5 files: those of training, so that the held-out '
                        'tenth is the same')
    parser.add_argument('--out', type=Path, required=True, help='folder of the results')
    parser.add_argument('--horizons', type=_horizons, default=(1, 10, 50), metavar='1,10,50',
                        help='steps to imagine')
    parser.add_argument('--clips', type=positive_int, default=10,
                        help='at most; a clip of 50 steps of a small model takes a core about a '
                        'minute')
    parser.add_argument('--split', choices=SPLITS,
                        help="data.split of the training run, where the checkpoint's train.yaml "
                        'does not say it')
    parser.add_argument('--drop-no-ops', action='store_true', help='as given to tokenise')
    parser.add_argument('--only', type=Path, metavar='FILE',
                        help='list of replays, as given to tokenise')
    parser.add_argument('--reencode', action='store_true', help='imagined frames go through '
                        'pixels and the encoder before the next step (public evaluation)')
    parser.add_argument('--lpips-weights', type=Path, metavar='FILE', help='vgg16.ckpt as `make '
                        'judges` gets it, or vgg16.pt of the StyleGAN2-ADA metrics; without it '
                        'LPIPS is skipped')
    parser.add_argument('--i3d-weights', type=Path, metavar='FILE',
                        help='i3d-kinetics-400.ckpt as `make judges` gets it, or '
                        'i3d_torchscript.pt; without it FVD is skipped')
    parser.add_argument('--strips', type=positive_int, default=3, help='clips drawn in strip.png')
    parser.add_argument('--device', choices=('auto', 'cpu', 'cuda'), default='auto')
    parser.add_argument('--dtype', choices=('auto', 'float32', 'bfloat16'), default='auto')
    parser.add_argument('--threads', type=positive_int, default=1, help='of torch on the CPU')
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    options = parse(arguments)
    try:
        report = world_metrics(options)
    except WorldVLAError as error:
        print(f'world_metrics: {error}', file=sys.stderr)
        return 1
    except OSError as error:
        print(f'world_metrics: {explain_os_error(error)}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('world_metrics: stopped; run the same command again, finished rollouts are kept',
              file=sys.stderr)
        return 130
    print(report.in_words())
    print(f'\nwritten: {options.out}/metrics.json metrics.csv strip.png curve.png')
    return 0


if __name__ == '__main__':
    sys.exit(main())
