"""Sentences about a check: the verdict, what was not checked, the next command."""

import shlex

from mmchat.data.class_folders import ClassFolders
from mmchat.data.config import DataConfig
from mmchat.data.doctor.image_search import find_images
from mmchat.data.doctor.run import CheckResult
from mmchat.data.preview.printable import printable
from mmchat.images import FolderImages

SHOWN_KEYS, LONGEST_KEY = 12, 40
LONGEST_PATH = 200
"""Most characters of a path in a hint."""


def cleanly(text: str, longest: int) -> str:
    """Untrusted text as one line of limited length, without control characters."""
    shown = printable(text[: longest + 1])
    return shown if len(shown) <= longest else f"{shown[: longest - 1]}…"


def verdict(result: CheckResult) -> str:
    counts = result.counts
    records = counted(counts["records"], "record")
    bad, warned = counts["records/with_errors"], counts["records/with_warnings_only"]
    warnings = f" Warnings: {counted(warned, 'more record' if bad else 'record')}." if warned else ""
    if left_out := counts["records/left_out"]:
        warnings += f" Left out: {counted(left_out, 'record')} without an image."
    if not bad:
        return f"No errors in {records}: training can start.{warnings}"
    advice = "Train with the clean index." if result.counts["records/sound"] else "No clean record is left."
    return f"{bad:,} of {records} must not be trained on.{warnings} {advice}"


def not_checked(result: CheckResult) -> list[str]:
    """What was not checked, and which option checks it."""
    request = result.request
    lines = []
    if request.processor is None:
        lines.append(
            "Lengths, supervised tokens, the model's control tokens and what its template refuses: "
            "name a model with --model."
        )
    if not request.against:
        lines.append("Overlap with an evaluation set: name its files with --against.")
    if result.unread:
        lines.append(
            f"{counted(result.unread, 'record')} of the evaluation set could not be read and was not compared "
            "(set --against-image-root to the folder of its images)."
        )
    without_content = sum(int((~stats.hash.any(axis=1)).sum()) for stats in result.stats)
    if without_content:
        lines.append(
            f"Similarity of {counted(without_content, 'image')} with hardly any content "
            "(a blank page, a single character): they all resemble each other."
        )
    if len(result.sources) > 1:
        lines.append("Duplicates and similar images across sources.")
    lines += [
        f"Of {source.config.path}: {FolderImages(others=source.source.table.others).others_in_words()}."
        for source in result.sources
        if isinstance(source.source.table, ClassFolders) and source.source.table.others
    ]
    return [
        *lines,
        "Whether answers are true, and whether texts are nearly the same.",
        "Frames of an animation after the first, which is the only one that training uses.",
    ]


def unread_keys(result: CheckResult) -> list[tuple[str, int]]:
    """The most frequent keys that have no meaning here, and the number of records that hold each."""
    return [(cleanly(key, LONGEST_KEY), number) for key, number in result.unread_keys.most_common(SHOWN_KEYS)]


def missing_images_hint(result: CheckResult, source: str, is_run: bool) -> list[str]:
    """What to do if the check found no image at all, but one lies elsewhere; empty otherwise.

    Args:
        result: The check.
        source: What was checked, as it was named.
        is_run: Whether that is the config of a run.
    """
    found = find_images(result.sources, result.stats, result.tally)
    if found is None:
        return []
    file = cleanly(str(found.file), LONGEST_PATH)
    if found.root is None:
        return [f"All images are missing. {file} exists: correct the paths in the records."]
    root = shlex.quote(str(found.root))
    if is_run:
        return [f"All images are missing. Wrong image_root? {file} exists: set image_root of the data to {root}"]
    return [
        f"All images are missing. Wrong --image-root? {file} exists.",
        f"next: mmchat data check {shlex.quote(source)} --image-root {root}",
    ]


def next_command(result: CheckResult, source: str, is_run: bool, model: str | None = None) -> str | None:
    """The command that trains on the checked records; None if no clean record is left.

    Args:
        result: The check.
        source: What was checked, as it was named.
        is_run: Whether that is the config of a run, which names its sources and model itself.
        model: The model directory that was named.
    """
    if result.counts["records/sound"] == 0:
        return None
    overrides = [] if is_run else _source_options(result.request.data, model)
    if not result.sound:
        for checked, path in zip(result.sources, result.clean, strict=True):
            prefix = f"sources.{checked.name}." if result.request.data.sources else ""
            overrides += [f"--data.{prefix}index", str(path)]
    return " ".join(map(shlex.quote, ["mmchat", "train", source if is_run else "CONFIG", *overrides]))


def _source_options(data: DataConfig, model: str | None) -> list[str]:
    options = {"model": model, "data.path": data.path, "data.image_root": data.image_root}
    options |= {"data.template": data.template, "data.allow_http": "true" if data.allow_http else None}
    return [word for key, value in options.items() if value is not None for word in (f"--{key}", value)]


def counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"
