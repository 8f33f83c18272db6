"""Sentences about a check: the verdict, what was not checked, the next command."""

import shlex

from mmchat.data.doctor.run import CheckResult
from mmchat.data.preview.printable import printable

SHOWN_KEYS, LONGEST_KEY = 12, 40


def cleanly(text: str, longest: int) -> str:
    """Untrusted text as one line of limited length, without control characters."""
    shown = printable(text[: longest + 1])
    return shown if len(shown) <= longest else f"{shown[: longest - 1]}…"


def verdict(result: CheckResult) -> str:
    counts = result.counts
    records = counted(counts["records"], "record")
    bad, warned = counts["records/with_errors"], counts["records/with_warnings_only"]
    warnings = f" Warnings: {counted(warned, 'more record' if bad else 'record')}." if warned else ""
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
    return [
        *lines,
        "Whether answers are true, and whether texts are nearly the same.",
        "Frames of an animation after the first, which is the only one that training uses.",
    ]


def unread_keys(result: CheckResult) -> list[tuple[str, int]]:
    """The most frequent keys that have no meaning here, and the number of records that hold each."""
    return [(cleanly(key, LONGEST_KEY), number) for key, number in result.unread_keys.most_common(SHOWN_KEYS)]


def next_command(result: CheckResult, source: str, is_run: bool) -> str | None:
    """The next command; None if no clean record is left."""
    if result.counts["records/sound"] == 0:
        return None
    overrides = []
    if not result.sound:
        for checked, path in zip(result.sources, result.clean, strict=True):
            prefix = f"sources.{checked.name}." if result.request.data.sources else ""
            overrides += [shlex.quote(f"--data.{prefix}index"), shlex.quote(str(path))]
    run = shlex.quote(source) if is_run else "CONFIG"
    return " ".join(["mmchat train", run, *overrides])


def counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"
