# SPDX-License-Identifier: Apache-2.0
"""The training loop: the same losses whether a run was interrupted or not.

Batch, learning rate and dropout of a step follow from the configuration and the number of the
step; weights and optimizer are all that has to be saved. Several processes (torchrun) share each
batch and average their gradients (`parallel`).
"""

from collections.abc import Sequence
from dataclasses import replace
import math
from pathlib import Path
import sys
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn
import torch.distributed as dist
from tqdm import tqdm

from worldvla_ros.model.checkpoint import pick_dtype
from worldvla_ros.model.transformer import Transformer
from worldvla_ros.policy.pretrained import Pretrained
from worldvla_ros.training.aims import ReachHead
from worldvla_ros.training.batches import (
    Batch,
    SampleTable,
    collate,
    collate_by_branch,
    with_noise,
)
from worldvla_ros.training.experiment import Experiment
from worldvla_ros.training.failures import TrainingError, not_finite
from worldvla_ros.training.held_out import held_out_values
from worldvla_ros.training.loading import made_ahead
from worldvla_ros.training.loss_of_batch import TERMS, LossOfBatch
from worldvla_ros.training.losses import LossTerms
from worldvla_ros.training.network import (
    add_dropout,
    checkpoint_activations,
    compile_layers,
    fast_attention,
    set_up_torch,
)
from worldvla_ros.training.parallel import (
    gradients_kept_apart,
    load_optimizer_state,
    mean_over_processes,
    others_wait,
    pick_device,
    replicate,
    rows_of_all,
    shard,
    whole,
    whole_optimizer_state,
    whole_state,
)
from worldvla_ros.training.run_folder import (
    MetricsLog,
    RunFolder,
    load_state,
    plot_metrics,
    read_metrics,
)
from worldvla_ros.training.steps import learning_rate, seed_of
from worldvla_ros.training.stop_signals import StopSignals
from worldvla_ros.training.throughput import Throughput


class Trainer:
    """Trains one experiment to its number of steps, from wherever it stands."""

    def __init__(self, experiment: Experiment, resume_from: Path | None = None) -> None:
        config = experiment.config
        self._experiment, self._config = experiment, config
        self._folder = RunFolder(config)
        self._rank = dist.get_rank() if dist.is_initialized() else 0
        self._processes = dist.get_world_size() if dist.is_initialized() else 1
        if config.data.batch_size % (self._processes * config.data.accumulate):
            raise TrainingError(f'data.batch_size ({config.data.batch_size}) must be a multiple '
                                f'of the number of processes ({self._processes}) times '
                                f'data.accumulate ({config.data.accumulate})')
        self.device = pick_device(config.run.device)
        self._sharded = self._processes > 1 and config.run.parallel == 'fsdp'
        model = experiment.pretrained.model
        if not self._sharded:  # else each layer goes to the device when it is spread
            model.to(self.device)
        set_up_torch()
        add_dropout(model, config.model.dropout)
        fast_attention(model, self.device)
        if config.model.activation_checkpointing:
            checkpoint_activations(model)
        if config.run.compile:
            compile_layers(model, self.device)
        self.dtype = pick_dtype(config.run.dtype, self.device)
        torch.manual_seed(config.run.seed)
        self._loss_of_one = LossOfBatch(model, config.loss, self.dtype, config.data.chunk_mask,
                                        config.data.horizon)
        self._loss: nn.Module = self._loss_of_one
        state = None if resume_from is None else self._state_of(resume_from)
        if self._head is not None:
            if state is not None:
                self._head.load_state_dict(state['reach_head'])
            if not self._sharded:
                self._head.to(self.device)
        if self._sharded:
            shard(self._loss_of_one, model, self.device, self.dtype)
        elif self._processes > 1:
            self._loss = replicate(self._loss_of_one)
        choice = config.optimizer
        self._optimizer = torch.optim.AdamW(
            self._loss_of_one.parameters(), choice.learning_rate, (choice.beta1, choice.beta2),
            weight_decay=choice.weight_decay, fused=True)  # a quarter of the time on a CPU
        self.step = 0  # optimizer steps done
        self._saved = 0  # of these in the newest checkpoint
        self._recent: list[list[float]] = []  # of `train_step`, since the log was written
        if state is not None:
            load_optimizer_state(self._optimizer, state['optimizer'])
            self.step = self._saved = state['step']
            if self._rank == 0:  # it has those of all; versions before saved none
                self._recent = state.get('recent', [])

    @property
    def model(self) -> Transformer:
        """The network; spread over the processes where they are sharded."""
        return self._loss_of_one.model

    @property
    def _head(self) -> ReachHead | None:
        """What tells how far aims are; None where it is not asked."""
        return self._loss_of_one.reach_head

    def run(self) -> Path | None:
        """Train to the end; return the folder of the result, None in all but one process.

        Raises TrainingError when a loss is not finite or the disk is full; the checkpoints before
        are whole and the same command resumes from the last. Ctrl-C and SIGTERM end it after the
        step that is being done, which is saved; then KeyboardInterrupt is raised.
        """
        with StopSignals() as stop:
            self._train(stop)
        last = self._whole_pretrained()
        with others_wait():
            if last is None:
                return None
            result = self._folder.export(last)
            plot_metrics(self._folder.path)  # last: nothing is lost where it cannot be drawn
        return result

    def _train(self, stop: StopSignals) -> None:
        run = self._config.run
        log = (MetricsLog(self._folder.path, self.step, run.tensorboard) if self._rank == 0
               else None)
        bar = tqdm(total=run.steps, initial=self.step, unit='step', disable=self._rank > 0,
                   smoothing=0.05, mininterval=1.0 if sys.stderr.isatty() else 30.0,
                   dynamic_ncols=True)
        speed = Throughput(self.model.config, self.device, self.dtype, self._processes)
        steps = range(self.step, run.steps)
        if self.step and self._due(run.evaluate_every) and not self._is_evaluated():
            # it was killed after it saved
            self._evaluate(log)
        with bar, made_ahead(self.batches, steps, run.loader_processes) as upcoming:
            speed.start()
            for parts in upcoming:
                self._recent.append(self.train_step(parts))
                for part in parts:
                    speed.add(part)
                bar.update()
                if self._due(run.log_every):
                    self._log_training(log, bar, speed.read())
                    self._recent = []
                if self._due(run.evaluate_every) or self._due(run.save_every):
                    self._save_and_evaluate(log)
                    speed.start()
                if self.step < run.steps and self._all_stop(stop.asked):
                    self._stop()
        if self._rank == 0:
            tqdm.write(speed.summary(), sys.stderr)

    def train_step(self, parts: Sequence[Sequence[Batch]]) -> list[float]:
        """Do one optimizer step; return TERMS, gradient norm and learning rate.

        TERMS of a branch, and of aims, are means over the parts that have any.

        :param parts: of the batch, whose gradients are averaged; each as LossOfBatch takes it.
        """
        rate = learning_rate(self.step, self._config.optimizer, self._config.run.steps)
        for group in self._optimizer.param_groups:
            group['lr'] = rate
        # Dropout differs by step and process, and is the same when the step is done again.
        torch.manual_seed(seed_of(self._config.run.seed, self.step, self._rank))
        self._loss.train()
        self._optimizer.zero_grad()
        sums = self._sums_per_share(parts)
        rows = []
        for number, batches in enumerate(parts):
            with gradients_kept_apart(self._loss, number + 1 < len(parts)):
                terms: LossTerms = self._loss([batch.to(self.device) for batch in batches],
                                              sums)
                (terms.total / len(parts)).backward()
            rows.append(torch.stack([getattr(terms, name).detach() for name in TERMS]))
        norm = whole(nn.utils.clip_grad_norm_(self._loss.parameters(),
                                              self._config.optimizer.clip_norm or math.inf))
        values = torch.cat([torch.stack(rows).nanmean(0), norm[None]]).tolist()
        if not math.isfinite(values[-1]):
            raise not_finite(self.step, values[0], values[-1], rate, self._saved > 0)
        self._optimizer.step()
        self.step += 1
        return [*values, rate]

    def _sums_per_share(self, parts: Sequence[Sequence[Batch]]) -> Tensor:
        """Return `label_sums` of the batch of all processes, by the number of its shares.

        With them the mean of the shares' gradients is that of the whole, however it is split.
        """
        sums = self._loss_of_one.sums([batch for part in parts for batch in part])
        sums = sums.to(self.device)
        if self._processes > 1:
            dist.all_reduce(sums)
        return sums / (self._processes * len(parts))

    def evaluate(self) -> dict[str, float]:
        """Return `held_out_values` of the network as it is now."""
        data = self._config.data
        return held_out_values(
            self._loss_of_one, self._experiment, self._collate,
            at_once=data.batch_size // (self._processes * data.accumulate),
            decode=not self._sharded)

    def batches(self, step: int) -> tuple[tuple[Batch, ...], ...]:
        """Return this process's share of the batch of a step, in its parts."""
        data = self._config.data
        indices = self._experiment.train.batch(data.batch_size, data.world_share,
                                               self._config.run.seed, step)
        mine = indices[self._rank::self._processes]
        rng = np.random.default_rng((self._config.run.seed, step, self._rank))
        table = self._experiment.train
        vocabulary = self._experiment.pretrained.model.config.vocabulary
        return tuple(
            tuple(with_noise(batch, vocabulary, data.code_noise, data.action_noise, rng)
                  for batch in self._collate(table, mine[part::data.accumulate].tolist()))
            for part in range(data.accumulate))

    def _collate(self, table: SampleTable, indices: list[int]) -> tuple[Batch, ...]:
        samples = [table[index] for index in indices]
        # Weights that are spread are gathered per pass: every process needs as many of them, and
        # the share of one may lack a branch.
        data = self._config.data
        if data.length is None and not self._sharded:
            return collate_by_branch(samples, data.length_multiple)
        return (collate(samples, data.length, data.length_multiple),)

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self._config.run.steps

    def _log_training(self, log: MetricsLog | None, bar: tqdm, speed: dict[str, float]) -> None:
        rows = torch.tensor(self._recent, dtype=torch.float64, device=self.device)
        means = mean_over_processes(rows).tolist()
        if log is None:
            return
        values = dict(zip((*TERMS, 'grad_norm', 'learning_rate'), means, strict=True))
        log.write(self.step, 'train', {**values, **speed})
        bar.set_postfix_str(f'loss {values["total"]:.3f}, action {values["action_accuracy"]:.1%} '
                            f'right, {speed["tokens_per_s"]:.0f} tokens/s', refresh=False)

    def _save_and_evaluate(self, log: MetricsLog | None) -> None:
        run = self._config.run
        evaluated = self._due(run.evaluate_every)
        if self._due(run.save_every) or (evaluated and self._can_evaluate()):
            self._save()  # first: what the evaluation meets costs no step
        if evaluated:
            self._evaluate(log)

    def _can_evaluate(self) -> bool:
        return bool(self._experiment.held_out and self._config.run.evaluation_batches)

    def _evaluate(self, log: MetricsLog | None) -> None:
        """Write `evaluate` into the log, where there is anything to evaluate on."""
        if not self._can_evaluate():
            return
        # Weights that are spread are gathered by all processes, for the same batches.
        values = self.evaluate() if self._sharded or self._rank == 0 else {}
        if log is not None and values:
            log.write(self.step, 'held_out', values)

    def _is_evaluated(self) -> bool:
        """Return whether the log has the evaluation of this step; the same in every process."""
        return any((int(row['step']), row['split']) == (self.step, 'held_out')
                   for row in read_metrics(self._folder.path))

    def _all_stop(self, asked: bool) -> bool:
        """Return whether any process was asked to stop, so that all end after the same step."""
        if self._processes == 1:
            return asked
        any_asked = torch.tensor(int(asked), device=self.device)
        dist.all_reduce(any_asked, dist.ReduceOp.MAX)
        return bool(any_asked)

    def _stop(self) -> NoReturn:
        self._save()
        if self._rank == 0:
            tqdm.write(f'stopped after step {self.step}, which is saved', sys.stderr)
        raise KeyboardInterrupt

    def _save(self) -> None:
        """Write a checkpoint of this step, if it has none yet; every process must call it."""
        if self._saved == self.step:
            return
        self._saved = self.step
        pretrained = self._whole_pretrained()
        state = {'step': self.step, 'optimizer': whole_optimizer_state(self._optimizer),
                 'data': self._experiment.data, 'recent': rows_of_all(self._recent)}
        if self._head is not None:
            state['reach_head'] = whole_state(self._head)
        with others_wait():
            if pretrained is not None:
                self._folder.save(pretrained, state, self.step)

    def _whole_pretrained(self) -> Pretrained | None:
        """Return the checkpoint as it is now, in the first process; every process must call it."""
        pretrained = self._experiment.pretrained
        weights = whole_state(pretrained.model) if self._sharded else {}
        if self._rank > 0:
            return None
        if not self._sharded:
            return pretrained
        with torch.device('meta'):
            model = Transformer(pretrained.model.config)
        model.load_state_dict(weights, assign=True)
        if pretrained.model.config.tie_word_embeddings:
            model.lm_head.weight = model.model.embed_tokens.weight
        return replace(pretrained, model=model)

    def _state_of(self, folder: Path) -> dict[str, Any]:
        """Return what a checkpoint of this run holds beside the network."""
        state = load_state(folder)
        if state['data'] != self._experiment.data:
            raise TrainingError(
                f'{folder} was trained on data {state["data"]}, and the store now holds '
                f'{self._experiment.data}; restore the store, or start a new run with '
                'model.init_from')
        return state
