"""One training run from its config to its finished model."""

from collections.abc import Callable

from rich.console import Console

from mmchat.data.quarantine import Quarantine
from mmchat.progress import progress_bar
from mmchat.training.build_model import open_model
from mmchat.training.checkpoints.reshard import needs_resharding
from mmchat.training.checkpoints.saver import CheckpointSaver, load_checkpoint
from mmchat.training.config import RunConfig
from mmchat.training.dataloader import Feed
from mmchat.training.distributed import collectives
from mmchat.training.distributed.signals import StopSignals
from mmchat.training.engine import build_engine
from mmchat.training.feature_cache.cache import fill_feature_cache, move_unused_towers
from mmchat.training.loop import train_step, validate
from mmchat.training.monitoring.flops import model_flops
from mmchat.training.monitoring.grad_norms import ModuleGradNorms
from mmchat.training.monitoring.gradient_watch import GradientWatch
from mmchat.training.monitoring.logger import RunLogger
from mmchat.training.monitoring.metrics import write_environment
from mmchat.training.monitoring.nan_guard import NanGuard
from mmchat.training.monitoring.peak_flops import find_peak_flops
from mmchat.training.monitoring.trackers import check_installed
from mmchat.training.optim.ema import WeightAverage
from mmchat.training.optim.trainable_table import render_table
from mmchat.training.run_dir import claim
from mmchat.training.save_model import finish
from mmchat.training.validation.zero_shot_accuracy import ZeroShotAccuracy

WATCHED_STEPS = 3
"""After so many steps the run says which trained tensors have received no gradient."""


def run(config: RunConfig) -> int:
    """Train as `config` says; every rank of the launcher calls this.

    Returns the exit status: 0, or 130 or 143 where a signal stopped the run (`training.distributed.signals`).

    Raises:
        UserError: anything about the config, data or run directory that the user can mend.
    """
    check_installed(config.monitoring.trackers)
    console = Console(stderr=True, quiet=collectives.rank() > 0, highlight=False, soft_wrap=True)
    resume_from = claim(config, console.print)
    if resume_from == "finished":
        console.print(f"{config.run_dir}/model is complete already; nothing to do")
        return 0
    peak = find_peak_flops(config.precision, config.monitoring.peak_tflops)
    if collectives.rank() == 0:
        write_environment(config.run_dir / "environment.json", peak)
    opened = open_model(config, in_parts=config.distributed.zero_stage == 3)
    objective, groups = opened.objective, opened.groups
    console.print(render_table(groups, config.optimizer.lr, config.optimizer.weight_decay, config.model))

    quarantine = Quarantine(config.run_dir / "quarantine.jsonl", config.on_bad_sample, collectives.rank() == 0)
    feed = Feed(config, objective, quarantine)
    zero_shot = ZeroShotAccuracy(config.objective.zero_shot, objective) if config.objective.zero_shot else None
    signals = StopSignals()
    if config.objective.feature_cache and (
        status := fill_feature_cache(config, objective, feed, quarantine, signals, console)
    ):
        return status
    cost = model_flops(objective.model, towers_run=objective.features is None)
    guard = NanGuard(config.monitoring.stability)
    norms = ModuleGradNorms(groups, sharded=config.distributed.zero_stage > 0)
    convert = resume_from is not None and needs_resharding(resume_from)
    engine = build_engine(objective.model, groups, config, feed.total, collectives.ranks(), guard, norms, convert)
    move_unused_towers(config, objective, "cpu")
    average = WeightAverage(groups, config.ema) if config.ema else None
    done, owes_validation = 0, False
    if resume_from is not None:
        state = load_checkpoint(engine, resume_from, config.seed, console.print)
        if average:
            average.restore(resume_from)
        done, owes_validation = state["step"], state["owes_validation"]
        guard.restore(state["guard"])
        console.print(f"resumed after step {done} from {resume_from}")
    elif config.resume:
        console.print(f"no checkpoint in {config.run_dir} yet: starting at the first step")
    journal = RunLogger(config, feed, quarantine, console, peak, done)
    watch = GradientWatch(groups) if done == 0 else None

    def validation(step: int) -> None:
        journal.log_evaluation(step, *validate(engine, objective, feed.held_out()))

    def due(step: int) -> list[Callable[[int], None]]:
        """What is to be evaluated after a step."""
        known = [
            (config.validation, validation),
            (config.objective.zero_shot, lambda step: journal.log_evaluation(step, *zero_shot(engine))),
        ]
        return [how for part, how in known if part and (step == feed.total or step % part.every == 0)]

    bar_of_steps = progress_bar(config.run_dir.name, feed.total, done, enabled=collectives.rank() == 0)
    folder = config.run_dir / "checkpoints"
    saver = CheckpointSaver(engine, folder, config.checkpoint, console.print, average)
    with journal, signals, bar_of_steps as bar, saver:
        for evaluate in due(done) if owes_validation else []:
            evaluate(done)
        journal.meter.resume()
        for step, batches in feed.steps(done):
            journal.meter.data_ready()
            result = train_step(engine, objective, batches, guard, norms, signals.flags, cost)
            if average and result.taken:
                average.update(step)
            bar.advance(note=journal.log_step(step, result))
            last = step == feed.total
            if watch and step == min(WATCHED_STEPS, feed.total):
                _tell_missing_gradients(watch.finish(), console)
                watch = None
            if result.stop:  # whoever sent the signal may not wait for long: validation can be made up for
                saved = saver.save(step, at_once=True, guard=guard.state(), owes_validation=bool(due(step)))
                journal.log_stop(result.stop, step, saved)
                return result.stop
            for evaluate in due(step):
                evaluate(step)
            if last or step % config.checkpoint.every == 0:
                saver.save(step, guard=guard.state(), owes_validation=False)
            journal.meter.resume()
    move_unused_towers(config, objective, engine.device)
    finish(config, opened, average, quarantine, console)
    return 0


def _tell_missing_gradients(names: list[str], console: Console) -> None:
    if names:
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        console.print(f"[yellow]no gradient in the first {WATCHED_STEPS} steps for {shown}")
