"""The plan as tables on a terminal, and as plain values for programs."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmchat.data.preview.preview import choose_records, preview_record
from mmchat.data.preview.terminal import print_samples
from mmchat.errors import counted
from mmchat.planning.memory import CUDA_CONTEXT, Memory
from mmchat.planning.plan import LargestMicroBatch, Plan
from mmchat.planning.problems import fits
from mmchat.planning.steps import Spread, StepsPlan
from mmchat.progress import format_duration
from mmchat.training.optim.trainable_table import render_table

GIB, MIB = 1 << 30, 1 << 20


def print_plan(plan: Plan, console: Console, samples: int) -> None:
    """Print the plan.

    Args:
        samples: samples of each source to show as training would see them.
    """
    config = plan.config
    console.print(render_table(plan.groups, config.optimizer.lr, config.optimizer.weight_decay, config.model))
    console.print()
    console.print(_sources(plan))
    for source in plan.sources:
        if source.first:
            console.print(Text(f"{source.name}, first unusable: {source.first}", "yellow"))
    if plan.processor is not None and samples:
        console.print()
        shown = [(part, place) for part in plan.mixture.sources for place in choose_records(part, samples)]
        print_samples(console, [preview_record(p, place, plan.processor, config.data.max_length) for p, place in shown])
    if plan.steps:
        console.print()
        console.print(_steps(plan))
    if plan.largest:
        console.print()
        console.print(_memory(plan))
        console.print(_largest(plan, plan.largest))
    for line in (*_cost(plan), *_cache(plan)):
        console.print(line)
    console.print()
    for problem in plan.problems:
        console.print(Text.assemble(("cannot run: ", "bold red"), problem.message))
    if not plan.problems:
        console.print(Text("it can run", "bold green"))


def as_values(plan: Plan) -> dict[str, Any]:
    """Everything in the plan except the run's config; bytes and operations as integers."""
    return {
        "ranks": plan.hardware.ranks,
        "gpu": plan.hardware.gpu and plan.hardware.gpu.short,
        "memory_limit": plan.hardware.limit,
        "mfu": plan.hardware.mfu,
        "modules": {
            group.name: {
                "mode": group.rule.mode,
                "trained": sum(p.numel() for p in group.trained.values()),
                "frozen": sum(p.numel() for p in group.frozen.values()),
                "unused": group.idle,
            }
            for group in plan.groups
        },
        "sources": [asdict(source) for source in plan.sources],
        "total_steps": plan.total,
        "steps": [asdict(steps) for steps in plan.steps],
        "rows": [asdict(row) for row in plan.rows],
        "largest": plan.largest and asdict(plan.largest),
        "zero_stage": plan.config.distributed.zero_stage,
        "memory": [_values(memory) for memory in plan.memory],
        "other_activation_checkpointing": plan.other,
        "other_memory": [_values(memory) for memory in plan.other_memory],
        "cost": plan.cost and asdict(plan.cost),
        "cache": plan.cache and asdict(plan.cache),
        "problems": [asdict(problem) for problem in plan.problems],
    }


def _values(memory: Memory) -> dict[str, Any]:
    return {**asdict(memory), "total": memory.total}


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", overflow="fold", no_wrap=number > 0)
    return table


def _sources(plan: Plan) -> Table:
    table = _table("Training data", "source", "records", "unusable", "supervised", "images", "per epoch")
    for source in plan.sources:
        share = f"{source.supervised / source.tokens:.1%}" if source.supervised else "-"
        unusable = f"{source.unusable:,}" if source.unusable else "-"
        counts = (f"{source.records:,}", unusable, share, f"{source.images:,}", f"{source.per_epoch:,}")
        table.add_row(source.name, *counts)
    return table


def _steps(plan: Plan) -> Table:
    planned = "" if len(plan.rows) >= plan.total else f"; {len(plan.rows):,} of them planned"
    samples = f"{plan.config.batch_size} samples on {counted(plan.hardware.ranks, 'rank')}{planned}"
    title = f"{counted(plan.total, 'step')} of {samples}; median, maximum"
    table = _table(title, "per rank and step", *map(_way, plan.steps))
    table.add_row("split", *(steps.split for steps in plan.steps))
    if plan.reads_text:
        table.add_row("fill: tokens per position", *(f"{steps.fill:.1%}" for steps in plan.steps))
    if any(steps.supervised_share for steps in plan.steps):
        table.add_row("supervised, of the tokens", *(f"{steps.supervised_share:.1%}" for steps in plan.steps))
    for name in ("forwards", "tokens", "images", "patches"):
        if name == "tokens" and not plan.reads_text:
            continue
        label = {"forwards": "micro-batches", "patches": "patch features"}.get(name, name)
        table.add_row(label, *(_spread(getattr(steps, name)) for steps in plan.steps))
    return table


def _way(steps: StepsPlan) -> str:
    way = "packed" if steps.packed else "padded"
    return f"{way} (this run)" if steps.as_configured else f"if {way}"


def _spread(spread: Spread) -> str:
    return f"{spread.median:,.0f}, {spread.most:,}"


def _memory(plan: Plan) -> Table:
    stage = plan.config.distributed.zero_stage
    names = [f"ZeRO {m.zero_stage}{' (this run)' if m.zero_stage == stage else ''}" for m in plan.memory]
    unit, size = ("GiB", GIB) if max(memory.total for memory in plan.memory) >= GIB else ("MiB", MIB)
    table = _table(f"Peak memory of a rank, {unit}", "", *names)

    def cells(memories: list[Memory], of: Callable[[Memory], int]) -> list[str]:
        return [f"{of(memory) / size:,.2f}" if of(memory) else "-" for memory in memories]

    rows = {
        "parameters": lambda m: m.parameters,
        "gradients": lambda m: m.gradients,
        "optimizer": lambda m: m.optimizer,
        "moving average": lambda m: m.average,
        "teacher": lambda m: m.teacher,
        "communication buckets": lambda m: m.buckets,
        "weights gathered": lambda m: m.gathered,
        "activations kept": lambda m: m.activations.kept,
        "weights rounded by autocast": lambda m: m.activations.weight_copies,
        "logits": lambda m: m.activations.logits,
        "working memory": lambda m: m.activations.working,
    }
    for name, of in rows.items():
        if any(of(memory) for memory in plan.memory):
            table.add_row(name, *cells(plan.memory, of))
    table.add_section()
    other = f"{'with' if plan.other else 'without'} activation checkpointing"
    for name, memories in (("total", plan.memory), (other, plan.other_memory)):
        sums = zip(memories, cells(memories, lambda memory: memory.total), strict=True)
        table.add_row(Text(name, "bold"), *(Text(total, _verdict(memory, plan)) for memory, total in sums))
    if any(memory.on_cpu for memory in plan.memory):
        table.add_row("in CPU memory instead", *cells(plan.memory, lambda memory: memory.on_cpu))
    return table


def _verdict(memory: Memory, plan: Plan) -> str:
    limit = plan.hardware.limit
    return "bold" if limit is None else "bold green" if fits(memory, limit) else "bold red"


def _largest(plan: Plan, largest: LargestMicroBatch) -> Text:
    batch, ids = largest.batch, largest.ids
    named = ", ".join(ids[:4]) + (f" and {len(ids) - 4} more" if len(ids) > 4 else "")
    supervised = f", {batch.supervised:,} supervised" if batch.supervised else ""
    positions = f"{batch.positions:,} positions, " if plan.reads_text else ""
    text = (
        f"largest micro-batch: step {batch.step}, rank {batch.rank}: {positions}{batch.images} images{supervised} "
        f"({named})"
    )
    limit = plan.hardware.limit
    if limit is None:
        return Text(f"{text}\nto see whether it fits, add --gpu NAME or --gpu-memory GIB")
    spare = (limit - plan.configured_memory.total - CUDA_CONTEXT) / GIB
    verdict = f"{spare:.1f} GiB to spare" if spare >= 0 else f"{-spare:.1f} GiB too much"
    return Text(f"{text}\n{plan.hardware.name}: {limit / GIB:.1f} GiB, of which CUDA needs about 1; {verdict}")


def _cost(plan: Plan) -> Iterator[str]:
    if not plan.memory:
        return
    yield ""
    if plan.cost is None:
        yield "operations: unknown for this kind of model"
        return
    line = f"{plan.cost.operations:.3g} operations per step, {plan.cost.operations * plan.total:.3g} in total"
    if plan.cost.hours is None:
        yield f"{line}; for the time, add --gpu NAME (bf16) or --monitoring.peak_tflops"
        return
    line += f": {format_duration(plan.cost.hours * 3600)} at an MFU of {plan.hardware.mfu:.0%}"
    yield line + ("" if plan.cost.price is None else f", {plan.cost.price:,.2f} at the price given")


def _cache(plan: Plan) -> Iterator[str]:
    cache = plan.cache
    if cache is None:
        return
    most = "" if cache.exact else "at most "
    yield f"feature cache of the frozen towers: {most}{cache.images:,} images, {cache.bytes / GIB:,.2f} GiB"
    if cache.fill_seconds is not None and cache.saved_seconds_per_epoch is not None:
        fill, saved = format_duration(cache.fill_seconds), format_duration(cache.saved_seconds_per_epoch)
        yield f"  {fill} to fill, {saved} saved per epoch"
    yield f"  it pays from {cache.epochs:.2f} epochs on; this run has {_epochs(plan):.2f}"


def _epochs(plan: Plan) -> float:
    return plan.total * plan.config.batch_size / plan.mixture.plan.samples
