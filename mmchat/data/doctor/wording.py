"""Plain sentences about a pass: the verdict, what was not looked at, what to type next."""

import shlex

from mmchat.data.doctor.run import CheckResult
from mmchat.data.preview.printable import printable


def cleanly(text: str, longest: int) -> str:
    """A stranger's text in one line of bounded length, without characters that steer."""
    shown = printable(text[: longest + 1])
    return shown if len(shown) <= longest else f"{shown[: longest - 1]}…"


def verdict(result: CheckResult) -> str:
    counts = result.counts
    records = counted(counts["records"], "record")
    bad, warned = counts["records/with_errors"], counts["records/with_warnings_only"]
    told = f" Warnings: {counted(warned, 'more record' if bad else 'record')}." if warned else ""
    if not bad:
        return f"Training may start: no errors in {records}.{told}"
    then = "With the clean index training may start." if result.counts["records/sound"] else "Nothing sound is left."
    return f"{bad:,} of {records} must not be trained on.{told} {then}"


def not_checked(result: CheckResult) -> list[str]:
    """What was left out, and what would bring it in."""
    request = result.request
    said = []
    if request.processor is None:
        said.append(
            "Lengths, supervised tokens, this model's own control tokens and what its template refuses: "
            "name a model with --model."
        )
    if not request.against:
        said.append("Overlap with an evaluation set: name its files with --against.")
    if result.unread:
        said.append(
            f"{counted(result.unread, 'record')} of the evaluation set could not be read and so not be compared "
            "(--against-image-root says where its images are)."
        )
    blank = sum(int((~stats.hash.any(axis=1)).sum()) for stats in result.stats)
    if blank:
        said.append(
            f"Look-alikes of {counted(blank, 'image')} with hardly anything in them (a blank page, a lone sign): "
            "they all look alike."
        )
    if len(result.sources) > 1:
        said.append("Duplicates and look-alikes from one source to another.")
    return [
        *said,
        "Whether answers are true, and whether words nearly repeat other words.",
        "Frames of an animation behind the first one, which is all that training sees.",
    ]


def next_command(result: CheckResult, source: str, is_run: bool) -> str | None:
    """What to type next; None where nothing sound is left."""
    if result.counts["records/sound"] == 0:
        return None
    words = []
    if not result.sound:
        for checked, path in zip(result.sources, result.clean, strict=True):
            named = f"sources.{checked.name}." if result.request.data.sources else ""
            words += [shlex.quote(f"--data.{named}index"), shlex.quote(str(path))]
    run = shlex.quote(source) if is_run else "CONFIG"
    return " ".join(["mmchat train", run, *words])


def counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"
