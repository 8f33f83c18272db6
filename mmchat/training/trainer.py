"""One training run from its config to its finished model."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import deepspeed
from rich.console import Console

from mmchat.data.quarantine import Quarantine
from mmchat.errors import counted
from mmchat.hub import pin
from mmchat.progress import progress_bar
from mmchat.terminal import PlainConsole
from mmchat.training.build_model import BuiltModel, build_model
from mmchat.training.checkpoints.loader import load_checkpoint
from mmchat.training.checkpoints.reshard import needs_resharding
from mmchat.training.checkpoints.saver import CheckpointSaver
from mmchat.training.config import RunConfig, as_dict
from mmchat.training.dataloader import TrainingDataLoader
from mmchat.training.deepspeed_engine import build_engine
from mmchat.training.distributed import process_group
from mmchat.training.distributed.siblings import resume_command
from mmchat.training.distributed.signals import StopSignals
from mmchat.training.feature_extraction.fill_cache import fill_feature_cache, move_unused_towers
from mmchat.training.feature_extraction.passes import DistributedPass
from mmchat.training.hardware import check_hardware
from mmchat.training.monitoring.flops import model_flops
from mmchat.training.monitoring.grad_norms import ModuleGradNorms
from mmchat.training.monitoring.gradient_watch import WATCHED_STEPS, GradientWatch, report_missing_gradients
from mmchat.training.monitoring.inputs import record_inputs
from mmchat.training.monitoring.logger import RunLogger
from mmchat.training.monitoring.metrics import write_environment
from mmchat.training.monitoring.nan_guard import NanGuard
from mmchat.training.monitoring.peak_flops import Peak, find_peak_flops
from mmchat.training.monitoring.trackers import check_installed, open_trackers
from mmchat.training.optim.ema import WeightAverage
from mmchat.training.optim.trainable_table import render_table
from mmchat.training.run_dir import claim_run_dir
from mmchat.training.run_dir_lock import locked
from mmchat.training.save_model import save_model
from mmchat.training.train_step import train_step
from mmchat.training.validation.held_out_loss import held_out_loss
from mmchat.training.validation.zero_shot_accuracy import ZeroShotAccuracy

Evaluation = Callable[[], None]


def run(config: RunConfig, signals: StopSignals, last_step: int | None = None) -> int:
    """Train as `config` says; every rank of the launcher calls this.

    Args:
        signals: stop the run.
        last_step: end after this step, without a checkpoint, an evaluation or a model; None: train to the end.

    Returns:
        The exit status: 0, or 130 or 143 if a signal stopped the run (`training.distributed.signals`).

    Raises:
        UserError: a mistake in the config, the data or the run directory.
    """
    check_installed(config.monitoring.trackers)
    config = replace(config, model=pin(config.model))
    console = PlainConsole(stderr=True, quiet=process_group.rank() > 0, highlight=False, soft_wrap=True)
    for note in check_hardware(config):
        console.print(note)
    with locked(config.run_dir, console.print):
        return _run_alone(config, console, signals, last_step)


def _run_alone(config: RunConfig, console: Console, signals: StopSignals, last_step: int | None) -> int:
    checkpoint = claim_run_dir(config, console.print)
    if checkpoint == "finished":
        console.print(f"{config.run_dir}/model is complete already; nothing to do")
        return 0
    trainer = Trainer(config, console, signals, last_step)
    status = trainer.fill_feature_cache()
    if not status:
        trainer.build(checkpoint)
        status = trainer.loop()
    if not status and last_step is None:
        trainer.finish()
    return status


@dataclass
class Progress:
    """Steps done, and whether the evaluations of the last of them are still to be made."""

    step: int = 0
    owes_evaluations: bool = False


class Trainer:
    """A run's parts, in the order in which they are made: model, data, evaluations; then engine, logger and guard."""

    def __init__(self, config: RunConfig, console: Console, signals: StopSignals, last_step: int | None = None) -> None:
        self.config, self.console, self.signals, self.last_step = config, console, signals, last_step
        self.peak: Peak = find_peak_flops(config.precision, config.monitoring.peak_tflops)
        if process_group.rank() == 0:
            write_environment(config.run_dir / "environment.json", self.peak)
        if self.peak.hint:
            console.print(self.peak.hint)
        self.built: BuiltModel = build_model(config, sharded=config.distributed.zero_stage == 3)
        self.objective = self.built.objective
        optimizer = config.optimizer
        console.print(render_table(self.built.groups, optimizer.lr, optimizer.weight_decay, config.model))
        path = config.run_dir / "quarantine.jsonl"
        self.quarantine = Quarantine(path, config.on_bad_sample, process_group.rank() == 0)
        self.dataloader = TrainingDataLoader(config, self.objective, self.quarantine)
        if process_group.rank() == 0:
            for line in record_inputs(config, self.dataloader.mixture):
                console.print(line, style="yellow")
        zero_shot = config.objective.zero_shot
        self.zero_shot = ZeroShotAccuracy(zero_shot, self.objective) if zero_shot else None

    def fill_feature_cache(self) -> int:
        """Compute the features that are missing, if the run has a cache; returns the exit status of a signal, or 0."""
        config, folder = self.config, self.config.objective.feature_cache
        if folder is None:
            return 0
        ranks = DistributedPass(config.workers, self.quarantine, self.signals)
        samples = self.dataloader.samples()
        status = fill_feature_cache(folder, config.precision, self.objective, samples, ranks, self.console)
        if status:
            self.console.print(
                "stopped before the first step; features computed so far are kept\n"
                f"  resume with: {resume_command(config.run_dir)}",
            )
        return status

    def build(self, checkpoint: Path | None) -> None:
        """Make the engine and all that watches it, in the state of a checkpoint or of the first step."""
        config, groups = self.config, self.built.groups
        self.flops = model_flops(self.objective.model, self.objective.features is None, self.objective.teacher)
        self.guard = NanGuard(config.monitoring.stability)
        self.norms = ModuleGradNorms(groups, sharded=config.distributed.zero_stage > 0)
        self.engine: deepspeed.DeepSpeedEngine = build_engine(
            self.objective.model,
            groups,
            config,
            self.dataloader.total,
            process_group.world_size(),
            self.guard,
            self.norms,
            load_universal=checkpoint is not None and needs_resharding(checkpoint),
        )
        move_unused_towers(self.objective, config.distributed.zero_stage, "cpu")
        self.average = WeightAverage(groups, config.ema) if config.ema else None
        self.progress = self._resume(checkpoint) if checkpoint else Progress()
        if checkpoint is None and config.resume:
            self.console.print(f"no checkpoint in {config.run_dir} yet: starting at the first step")
        self.logger = self._open_logger(done=self.progress.step)
        self.watch = GradientWatch(groups) if self.progress.step == 0 else None
        self._print_extent()

    def _open_logger(self, done: int) -> RunLogger:
        config, trackers = self.config, []
        if process_group.rank() == 0:
            trackers = open_trackers(config.monitoring.trackers, config.run_dir, as_dict(config), done)
        return RunLogger(config.run_dir, trackers, self.dataloader, self.quarantine, self.console, self.peak, done)

    def _print_extent(self) -> None:
        """What the run goes through: its mixture, samples, steps and how a step is split."""
        config, data = self.config, self.dataloader
        if len(data.mixture.sources) > 1:
            self.console.print(data.mixture.table())
        ranks = counted(process_group.world_size(), "rank")
        self.console.print(
            f"{data.order.plan.samples:,} samples, {counted(data.total, 'step')} of {config.batch_size} "
            f"({data.order.epoch(data.total):.2f} epochs), {ranks} x {data.splitter}, "
            f"{config.precision}, ZeRO {config.distributed.zero_stage}"
        )

    def _resume(self, checkpoint: Path) -> Progress:
        state = load_checkpoint(self.engine, checkpoint, self.config.seed, self.console.print)
        if self.average:
            self.average.restore(checkpoint)
        self.guard.restore(state["guard"])
        self.console.print(f"resumed after step {state['step']} from {checkpoint}")
        return Progress(state["step"], state["owes_validation"])

    def evaluations(self, step: int) -> Iterator[Evaluation]:
        """The evaluations that are due after a step."""
        known = [
            (self.config.validation, lambda: held_out_loss(self.engine, self.objective, self.dataloader.held_out())),
            (self.config.objective.zero_shot, lambda: self.zero_shot(self.engine)),
        ]
        for schedule, evaluate in known:
            if schedule and (step == self.dataloader.total or step % schedule.every == 0):
                yield lambda evaluate=evaluate: self.logger.log_evaluation(step, *evaluate())

    def loop(self) -> int:
        """Take the steps that are left; returns the exit status of a signal, or 0."""
        config, done = self.config, self.progress.step
        bar_of_steps = progress_bar(config.run_dir.name, self.dataloader.total, done, enabled=process_group.rank() == 0)
        directory = config.run_dir / "checkpoints"
        saver = CheckpointSaver(self.engine, directory, config.checkpoint, self.console.print, self.average)
        with self.logger, self.signals, bar_of_steps as bar, saver:
            if self.progress.owes_evaluations:
                self._evaluate(done)
            self.logger.meter.resume()
            for step, batches in self.dataloader.steps(done):
                self.logger.meter.data_ready()
                result = train_step(
                    self.engine, self.objective, batches, self.guard, self.norms, self.signals.flags, self.flops
                )
                if self.average and result.taken:
                    self.average.update(step)
                bar.advance(note=self.logger.log_step(step, result))
                self._watch_gradients(step)
                if step == self.last_step:
                    return 0
                if result.stop:  # whatever sent the signal may not wait long: evaluations are made on resume
                    owed = any(True for _ in self.evaluations(step))
                    saved = saver.save(step, at_once=True, guard=self.guard.state(), owes_validation=owed)
                    self.logger.log_stop(result.stop, step, saved)
                    return result.stop
                self._evaluate(step)
                if step == self.dataloader.total or step % config.checkpoint.every == 0:
                    saver.save(step, guard=self.guard.state(), owes_validation=False)
                self.logger.meter.resume()
        return 0

    def _evaluate(self, step: int) -> None:
        for evaluate in self.evaluations(step):
            evaluate()

    def _watch_gradients(self, step: int) -> None:
        """After the first steps of a run, name trained tensors without a gradient.

        A shorter run names none: half of a new LoRA has no gradient in the first step, because the other half is zero.
        """
        if self.watch and step == WATCHED_STEPS:
            report_missing_gradients(self.watch.finish(), self.console)
            self.watch = None

    def finish(self) -> None:
        """Write the model, curves and report."""
        move_unused_towers(self.objective, self.config.distributed.zero_stage, self.engine.device)
        save_model(self.config, self.built, self.average, self.quarantine, self.console)
