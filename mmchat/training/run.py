"""One training run from its config to its finished model."""

from collections.abc import Callable, Iterable, Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import PeftModel
from rich.console import Console
from torch.utils.data import DataLoader

from mmchat.data.collate import Batch
from mmchat.data.dataset import Mixture, MixtureDataset, open_mixture
from mmchat.data.order import BatchOrder, MicroBatchSampler
from mmchat.data.quarantine import Quarantine
from mmchat.data.records import Rejected
from mmchat.errors import SharedError, UserError
from mmchat.files import read_json_lines, write_text
from mmchat.model.adapter import merge, save_adapter
from mmchat.progress import progress_bar
from mmchat.training import checkpoint, distributed
from mmchat.training.config import TRAJECTORY, RunConfig, as_dict
from mmchat.training.engine import accumulation, build_engine
from mmchat.training.interruption import StopSignals, ignore_stop_signals
from mmchat.training.loop import StepResult, grouped, train_step, validate
from mmchat.training.lora import add_adapters
from mmchat.training.metrics import Meter, MetricsLog, plot_loss, write_environment
from mmchat.training.objectives import OBJECTIVES, Objective
from mmchat.training.stability import Incident, IncidentLog, StepGuard, told
from mmchat.training.trainability import GradientWatch, apply_rules, render_table

WATCHED_STEPS = 3
"""After so many steps the run says which trained tensors have received no gradient."""


def run(config: RunConfig) -> int:
    """Train as `config` says; every rank of the launcher calls this.

    Returns the exit status: 0, or 130 or 143 where a signal stopped the run (`training.interruption`).

    Raises:
        UserError: anything about the config, data or run directory that the user can mend.
    """
    console = Console(stderr=True, quiet=distributed.rank() > 0, highlight=False, soft_wrap=True)
    resume_from = open_run_dir(config, console.print)
    if resume_from == "finished":
        console.print(f"{config.run_dir}/model is complete already; nothing to do")
        return 0
    objective = OBJECTIVES[config.objective](config)
    torch.manual_seed(config.seed)  # adapters begin alike on every rank
    adapter = add_adapters(objective.model, config.trainable)
    torch.manual_seed(config.seed + distributed.rank())
    groups = apply_rules(objective.model, config.trainable)
    console.print(render_table(groups, config.optimizer.lr, config.optimizer.weight_decay, config.model))

    quarantine = Quarantine(config.run_dir / "quarantine.jsonl", config.on_bad_sample, distributed.rank() == 0)
    mixture = open_mixture(config.data, quarantine, show_progress=distributed.rank() == 0)
    order = batch_order(config, mixture)
    total = config.steps or order.steps_in_total
    micro, rounds = accumulation(config, distributed.ranks())
    guard = StepGuard(config.stability)
    engine = build_engine(objective.model, groups, config, total, distributed.ranks(), guard)
    done, owes_validation = 0, False
    if resume_from is not None:
        state = checkpoint.load(engine, resume_from)
        done, owes_validation = state["step"], state["owes_validation"]
        guard.restore(state["guard"])
        console.print(f"resumed after step {done} from {resume_from}")
    elif config.resume:
        console.print(f"no checkpoint in {config.run_dir} yet: starting at the first step")
    if len(mixture.parts) > 1:
        console.print(mixture.table())
    console.print(
        f"{order.plan.samples:,} samples, {total:,} steps of {config.batch_size} ({order.epoch(total):.2f} epochs), "
        f"{distributed.ranks()} rank(s) x {rounds} x {micro}, {config.precision}, ZeRO {config.zero_stage}"
    )

    sampler = MicroBatchSampler(order, micro, distributed.rank(), distributed.ranks(), done, total)
    batches = load_batches(mixture, objective, sampler, config.workers)
    if config.overfit_one_batch:
        batches = iter_one_batch(batches, rounds, total - done)
    held_out = validation_batches(config, objective, quarantine, micro)
    log = MetricsLog(config.run_dir / "metrics.jsonl", done) if distributed.rank() == 0 else None
    incidents = IncidentLog(config.run_dir / "incidents.jsonl", done) if distributed.rank() == 0 else None
    watch = GradientWatch(groups) if done == 0 else None
    meter = Meter()

    def validate_and_log(step: int) -> None:
        loss = validate(engine, objective, held_out())
        if log:
            log.write(step=step, validation_loss=loss)

    def save(step: int, owes_validation: bool = False) -> Path:
        state = {"guard": guard.state(), "owes_validation": owes_validation}
        return checkpoint.save(engine, config.run_dir / "checkpoints", step, config.checkpoint.keep, **state)

    bar_of_steps = progress_bar(config.run_dir.name, total, done, enabled=distributed.rank() == 0)
    with StopSignals() as signals, bar_of_steps as bar:
        if owes_validation:
            validate_and_log(done)
        for step, step_batches in enumerate(grouped(batches, rounds), done + 1):
            meter.data_ready()
            lr = engine.get_lr()[0]
            result = train_step(engine, objective, step_batches, guard, signals.flags)
            for rejected in result.rejected:
                quarantine.add(rejected)
            rates = meter.step_done(result.terms)
            ids = []
            if log or result.incident:
                ids = _consumed(mixture, order.step(0 if config.overfit_one_batch else step - 1), result.rejected)
            if log:
                log.write(
                    step=step,
                    **_measured(result),
                    lr=lr,
                    epoch=round(order.epoch(step), 4),
                    terms=result.terms,
                    tokens=result.tokens,
                    images=result.images,
                    ids=ids,
                    **rates,
                )
            if result.incident:
                if incidents:
                    incidents.write(step, result.incident, ids)
                _tell(config, step, result.incident, ids, console)
            bar.advance(note=_note(result.loss, rates, len(quarantine)))
            if watch and step == min(WATCHED_STEPS, total):
                _report_missing_gradients(watch.finish(), console)
                watch = None
            last = step == total
            due = held_out is not None and (last or step % config.validation.every == 0)
            if result.stop:  # whoever sent the signal may not wait for long: validation can be made up for
                _tell_how_to_go_on(config, result.stop, step, total, save(step, owes_validation=due), console)
                return result.stop
            if due:
                validate_and_log(step)
            if last or step % config.checkpoint.every == 0:
                save(step)
            meter.resume()
    finish(config, objective, adapter, quarantine, console)
    return 0


def open_run_dir(config: RunConfig, tell: Callable[[str], None]) -> Path | str | None:
    """Claim the run directory: the checkpoint to resume from, "finished", or None for a fresh start.

    `tell` is given a line for each damaged checkpoint.

    Raises:
        UserError: it holds another run, or this one with other settings.
    """
    directory, resolved = config.run_dir, config.run_dir / "config.yaml"
    values = as_dict(config)
    if resolved.exists():
        if not config.resume:
            raise UserError(f"{directory} already holds a run; add --resume to go on with it, or name another run_dir")
        before = yaml.safe_load(resolved.read_text(encoding="utf-8"))
        changed = [key for key in TRAJECTORY if before.get(key) != values[key]]
        if changed:
            difference = "; ".join(f"{key}: {before.get(key)} -> {values[key]}" for key in changed)
            raise UserError(f"{directory} was begun with other settings ({difference}); a resumed run must keep them")
    distributed.barrier()  # every rank has looked before rank 0 writes
    if (directory / "model" / "config.json").exists():
        return "finished"
    if distributed.rank() == 0:
        write_text(resolved, yaml.safe_dump(values, sort_keys=False))
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        write_environment(directory / "environment.json", distributed.ranks(), device)
    return checkpoint.newest(directory / "checkpoints", tell) if config.resume else None


def batch_order(config: RunConfig, mixture: Mixture) -> BatchOrder:
    total = None if config.epochs is None else round(mixture.plan.samples * config.epochs)
    return BatchOrder(mixture.plan, config.seed, config.batch_size, total)


def load_batches(mixture: Mixture, objective: Objective, sampler: Iterable[list[int]], workers: int) -> Iterator[Batch]:
    loader = DataLoader(
        MixtureDataset(mixture, objective.encode),
        batch_sampler=sampler,
        collate_fn=objective.collator,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_available(),
        # A generator of its own: without it every pass draws a seed from the global one, on which dropout hangs.
        generator=torch.Generator(),
        worker_init_fn=ignore_stop_signals,
    )
    return iter(loader)


def iter_one_batch(batches: Iterator[Batch], rounds: int, steps: int) -> Iterator[Batch]:
    """The first step's micro-batches, `steps` times."""
    first = next(grouped(batches, rounds))
    for group in repeat(first, steps):
        yield from group


def validation_batches(config: RunConfig, objective: Objective, quarantine: Quarantine, micro: int):
    """A function that starts a pass over the held-out records, or None without any."""
    if config.validation is None:
        return None
    held_out = open_mixture(config.validation, quarantine, show_progress=distributed.rank() == 0)
    # Equally many batches on every rank, in file order; the last ones may be empty.
    ranks, rank = distributed.ranks(), distributed.rank()
    rounds = -(-len(held_out) // (micro * ranks))
    starts = [(i * ranks + rank) * micro for i in range(rounds)]
    index_lists = [list(range(start, min(start + micro, len(held_out)))) for start in starts]

    def one_pass() -> Iterator[Batch]:
        return load_batches(held_out, objective, index_lists, config.workers)

    return one_pass


def finish(
    config: RunConfig, objective: Objective, adapter: PeftModel | None, quarantine: Quarantine, console: Console
) -> None:
    """Write the final model, draw the curve, say where everything is."""
    if distributed.rank() == 0:
        if adapter is not None:
            # Before model/, which says that the run is finished.
            save_adapter(adapter, objective.processor, config.run_dir / "adapter", Path(config.model))
            _, difference = merge(adapter, objective.processor)
            console.print(f"adapter merged into the model; logits differ by at most {difference:.1e}")
        objective.save(config.run_dir / "model")
        metrics = read_json_lines(config.run_dir / "metrics.jsonl")
        plot_loss(metrics, config.run_dir / "loss.png", config.run_dir.name)
        steps = [row for row in metrics if "loss" in row]
        skipped = sum("skipped" in row for row in metrics)
        minutes = sum(row["seconds"] for row in steps) / 60
        held_out = [row["validation_loss"] for row in metrics if "validation_loss" in row]
        console.print(
            f"done: {len(steps)} steps in {minutes:.1f} min"
            + (f", last loss {steps[-1]['loss']:.4f}" if steps else "")
            + (f", validation loss {held_out[-1]:.4f}" if held_out else "")
            + f", {len(quarantine)} samples left out"
            + (f", {skipped} steps skipped" if skipped else "")
        )
        console.print(f"  model    {config.run_dir / 'model'}\n  metrics  {config.run_dir / 'metrics.jsonl'}")
        if adapter is not None:
            console.print(f"  adapter  {config.run_dir / 'adapter'}")
        console.print(f"  curve    {config.run_dir / 'loss.png'}")
        if len(quarantine):
            console.print(f"  left out {quarantine.path}")
    distributed.barrier()


def _consumed(mixture: Mixture, numbers: list[int], rejected: list[Rejected]) -> list[str]:
    """Ids of the step's samples in global order, without those that could not be used."""
    left_out = {item.where for item in rejected}
    records = (mixture.find(number)[1] for number in numbers)
    return [record.id for record in records if record.where not in left_out]


def _measured(result: StepResult) -> dict[str, Any]:
    """Loss and norm of a step for metrics.jsonl, where whoever reads `loss` wants steps that count."""
    if result.incident is None or result.incident.taken:
        return {"loss": result.loss, "grad_norm": result.grad_norm}
    return {"skipped": result.incident.reason}


def _tell(config: RunConfig, step: int, incident: Incident, ids: list[str], console: Console) -> None:
    """Raises SharedError if the run stops here."""
    message = told(step, incident, ids, config.run_dir / "incidents.jsonl")
    if incident.action == "stop":
        raise SharedError(
            f"{message}\n  look at them with `mmchat replay {config.run_dir} --step {step}`; then mend or remove what "
            "is wrong, or leave such steps out with --stability.on_nan skip (or on_spike), and go on from the newest "
            "checkpoint with --resume"
        )
    console.print(message, style="yellow", markup=False)


def _tell_how_to_go_on(config: RunConfig, status: int, step: int, total: int, saved: Path, console: Console) -> None:
    name = {130: "interrupted", 143: "told to end"}[status]
    console.print(
        f"{name}: stopped after step {step} of {total}, saved {saved}\n"
        f"  go on with: mmchat train {config.run_dir / 'config.yaml'} --ranks {distributed.ranks()} --resume",
        markup=False,
    )


def _report_missing_gradients(names: list[str], console: Console) -> None:
    if names:
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        console.print(f"[yellow]no gradient in the first {WATCHED_STEPS} steps for {shown}")


def _note(loss: float, rates: dict[str, float], left_out: int) -> str:
    note = f"loss {loss:.4f}  {rates['supervised_tokens_per_second']:.0f} terms/s  wait {rates['data_wait']:.0%}"
    return note + (f"  {left_out} left out" if left_out else "")
