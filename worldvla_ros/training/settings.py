# SPDX-License-Identifier: Apache-2.0
"""One training run as one YAML file; it is kept in every checkpoint of the run."""

from dataclasses import dataclass, field

from worldvla_ros.config import REQUIRED, bounded, check
from worldvla_ros.errors import ConfigError
from worldvla_ros.tokens.action_tokenizer import BIN_CHOICES
from worldvla_ros.training.losses import LossConfig
from worldvla_ros.training.samples import BRANCHES
from worldvla_ros.training.splits import SPLITS


@dataclass(frozen=True)
class DataConfig:
    """What is learned from."""

    store: str = bounded(REQUIRED, doc='token store, made by worldvla_ros.training.tokenise')
    tokenizer: str = bounded(REQUIRED, doc='image tokenizer folder that the store was made with')
    branches: tuple[str, ...] = bounded(('action', 'world'), choices=BRANCHES,
                                        doc='what to learn; world alone is pre-training')
    history_length: int = bounded(2, minimum=1, unit='frame', doc='of the action branch')
    horizon: int = bounded(5, minimum=1, unit='action', doc='of the action branch')
    world_rounds: int = bounded(1, minimum=1, unit='frame', doc='predicted in one world sample')
    world_stride: int | None = bounded(
        None, minimum=1, unit='step',
        doc='between these frames at most; null: that of model.init_from, else 1 as published')
    state: bool = bounded(False, doc='the state of the arm in the prompt of the action branch')
    wrist: bool = bounded(False, doc='the wrist camera in the prompt of the action branch')
    split: str = bounded('hashed', choices=SPLITS, doc='which episodes are held out: see splits')
    earlier_splits: tuple[str, ...] = bounded(
        (), doc='others that the weights were trained with before; the run fills it in from '
                'train.yaml of model.init_from, to warn')
    action_range: str = bounded('data', choices=('data', 'libero', 'checkpoint'),
                                doc='extremes of the training episodes, the published ones, or '
                                    'those of model.init_from, which has the last word')
    batch_size: int = bounded(32, minimum=1, unit='sample', doc='of all processes together')
    accumulate: int = bounded(1, minimum=1, doc='parts of a batch, one after the other: less '
                                                'memory, the same gradient')
    world_share: float | None = bounded(
        None, minimum=0.0, maximum=1.0,
        doc='of a batch that is not of the first branch, one sample every few batches where it '
            'is less; null: as the data has it, about half, and more with a world stride')
    code_noise: float = bounded(0.0, minimum=0.0, maximum=1.0,
                                doc='share of the image codes shown that are replaced at random')
    action_noise: float = bounded(
        0.0, minimum=0.0, maximum=1.0,
        doc='share of the earlier values of an action shown that are replaced at random')
    label_tolerance: float | None = bounded(
        None, minimum=0.0,
        doc='how far what was executed may be off the labels, per step of a chunk, before the '
            'later labels of the chunk are not learned [controller input]: those of a turn of the '
            'learner belong to where that led; null: all are learned')
    whole_chunks: bool = bounded(
        False, doc='leave out chunks with a label that is not learned for label_tolerance: what '
                   'the expert does itself is learned, and not what it says to a learner')
    short_chunks: bool = bounded(
        False, doc='learn the last actions of an episode, too, of which there are fewer than the '
                   'horizon; episodes of one step are glances (`rerender --scatter`)')
    asked_repeats: int = bounded(
        1, minimum=1, doc='times that an epoch has each chunk that the expert was asked for while '
                          'a policy had the arm (`collect --chunk`); any other it has once. Those '
                          'of the last steps of an episode only with short_chunks')
    length: int | None = bounded(None, minimum=1, unit='token',
                                 doc='pad every batch to it; null: to its longest sample')
    length_multiple: int = bounded(1, minimum=1, unit='token',
                                   doc='pad on to a multiple of it: 8 suits the kernels of a GPU')
    chunk_mask: bool = bounded(True, doc='hide earlier actions of the chunk; false: ablation')


@dataclass(frozen=True)
class ModelConfig:
    """The network; where `init_from` is given, its shape and text tokenizer come from there."""

    init_from: str = bounded('', doc='checkpoint to start from; empty: random weights')
    init_store: str = bounded('', doc='where it has another image tokenizer than data.store: a '
                                      'store of the same demonstrations made with that one')
    hidden_size: int = bounded(256, minimum=8)
    intermediate_size: int = bounded(704, minimum=8)
    num_layers: int = bounded(6, minimum=1)
    num_heads: int = bounded(4, minimum=1)
    tie_word_embeddings: bool = bounded(False)
    bin_choice: str = bounded('greedy', choices=BIN_CHOICES,
                              doc='of the policy: most likely (published) or expected value')
    image_embeddings: str = bounded('codebook', choices=('codebook', 'random'),
                                    doc='of a new model: alike for codes that look alike')
    image_places: bool = bounded(
        False, doc='an embedding for each place in an image, which the released layout has not: '
                   'see model.image_places; a checkpoint that is gone on from gets them, too')
    text_tokens: int = bounded(512, minimum=300, doc='most ids of the text tokenizer')
    dropout: float = bounded(0.05, minimum=0.0, maximum=0.9,
                             doc='after attention and feed-forward (public implementation)')
    activation_checkpointing: bool = bounded(False, doc='compute twice to hold less memory')


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW; betas, weight decay on all weights and clipping as in the public implementation."""

    learning_rate: float = bounded(5e-4, minimum=0.0)
    schedule: str = bounded('cosine', choices=('cosine', 'constant'))
    final_share: float = bounded(0.05, minimum=0.0, maximum=1.0,
                                 doc='of the learning rate at the end of the cosine')
    warmup_steps: int = bounded(100, minimum=0)
    beta1: float = bounded(0.9, minimum=0.0, maximum=0.9999)
    beta2: float = bounded(0.95, minimum=0.0, maximum=0.9999)
    weight_decay: float = bounded(0.1, minimum=0.0)
    clip_norm: float = bounded(4.0, minimum=0.0, doc='largest global gradient norm; 0: any')


@dataclass(frozen=True)
class RunConfig:
    """Where, how long and on what; all but the seed may change when a run is resumed.

    Of these, `steps` decides the learning rate of a step (cosine), and `dtype`, `device`,
    `compile` and `parallel` how it rounds; resuming with other values says so.
    """

    output: str = bounded(REQUIRED, doc='folder of checkpoints and metrics; resumed when there')
    steps: int = bounded(REQUIRED, minimum=1, doc='of the optimizer')
    name: str = bounded('worldvla-mini', doc='written into the checkpoints')
    seed: int = bounded(0, minimum=0)
    device: str = bounded('auto', choices=('auto', 'cpu', 'cuda'))
    dtype: str = bounded('auto', choices=('auto', 'float32', 'bfloat16'),
                         doc='of the matrix products; weights are float32')
    compile: bool = bounded(False, doc='fuse the layers with torch.compile: slower to start')
    parallel: str = bounded('ddp', choices=('ddp', 'fsdp'),
                            doc='several processes: each holds all weights, or its share of them')
    tensorboard: bool | None = bounded(
        None, doc='write its files, see requirements/optional; null: where it is installed')
    threads: int = bounded(1, minimum=1, doc='of torch on the CPU')
    loader_processes: int = bounded(0, minimum=0, doc='that build batches; 0: one thread, which '
                                                      'is enough beside a CPU\'s training')
    save_every: int = bounded(500, minimum=1, unit='step',
                              doc='at least: each evaluation is of a step that is saved')
    log_every: int = bounded(20, minimum=1, unit='step')
    evaluate_every: int = bounded(500, minimum=1, unit='step')
    evaluation_batches: int = bounded(8, minimum=0, doc='of the held-out episodes; 0: none')


@dataclass(frozen=True)
class TrainConfig:
    """Everything that determines a run."""

    data: DataConfig
    run: RunConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        """Check every value and what must fit together."""
        check(self)
        if not self.data.branches or len(set(self.data.branches)) < len(self.data.branches):
            raise ConfigError(f'data.branches must name each branch once, got '
                              f'{self.data.branches}')
        if self.data.action_range == 'checkpoint' and not self.model.init_from:
            raise ConfigError("data.action_range is 'checkpoint', and model.init_from names none")
        if self.run.parallel == 'fsdp' and (self.loss.aim_weight or self.loss.reach_weight):
            raise ConfigError("loss.aim_weight and reach_weight need run.parallel 'ddp': they "
                              'read one layer, and fsdp spreads it over the processes')
        if self.data.whole_chunks and self.data.label_tolerance is None:
            raise ConfigError('data.whole_chunks needs data.label_tolerance, such as 0.4, which '
                              'says when a label of a chunk does not hold')
        if self.model.init_store and not self.model.init_from:
            raise ConfigError('model.init_store is of the tokenizer of model.init_from, which '
                              'names no checkpoint')
        if self.model.hidden_size % (2 * self.model.num_heads):
            raise ConfigError(f'model.hidden_size must be a multiple of 2 x num_heads '
                              f'({2 * self.model.num_heads}), got {self.model.hidden_size}')
