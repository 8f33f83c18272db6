"""Captioning a folder: batches, one JSON line per picture, resumable. A broken picture is a line with its error."""

import json
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mmchat.errors import UserError
from mmchat.images import load_image
from mmchat.inference.generator import Generator
from mmchat.progress import progress_bar


@dataclass
class CaptionSummary:
    captioned: int = 0
    failed: int = 0
    skipped: int = 0


def caption_files(
    generator: Generator, files: list[Path], out: Path, prompt: str, batch_size: int, max_new_tokens: int
) -> CaptionSummary:
    """Append `{"path", "caption"}` or `{"path", "error"}` to `out` for every file that has no caption there yet.

    Lines are flushed batch by batch; a line that a killed run cut off is dropped and its picture done again.
    Pictures that failed before are tried again, and their old line goes.
    """
    kept = {path: line for path, line in _finished(out).items() if "caption" in line}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept.values()), encoding="utf-8")
    missing = [file for file in files if str(file) not in kept]
    summary = CaptionSummary(skipped=len(files) - len(missing))
    with out.open("a", encoding="utf-8") as sink, progress_bar("captioning", len(missing)) as bar:
        for start in range(0, len(missing), batch_size):
            batch = missing[start : start + batch_size]
            opened = [_try_open(file) for file in batch]
            pictures = [picture for picture in opened if isinstance(picture, Image.Image)]
            captions = iter(
                generator.caption(pictures, prompt, batch_size=batch_size, max_new_tokens=max_new_tokens)
            )
            for file, picture in zip(batch, opened, strict=True):
                if isinstance(picture, str):
                    line, summary.failed = {"path": str(file), "error": picture}, summary.failed + 1
                else:
                    line, summary.captioned = {"path": str(file), "caption": next(captions)}, summary.captioned + 1
                sink.write(json.dumps(line, ensure_ascii=False) + "\n")
            sink.flush()
            bar.advance(len(batch))
    return summary


def _finished(out: Path) -> dict[str, dict]:
    if not out.exists():
        return {}
    lines: dict[str, dict] = {}
    for number, text in enumerate(out.read_text(encoding="utf-8").splitlines(), 1):
        try:
            line = json.loads(text)
            lines[line["path"]] = line
        except (json.JSONDecodeError, TypeError, KeyError):
            if not _is_last(out, number):
                raise UserError(
                    f"{out}:{number} is no line of captions, so this file is not overwritten; name another --out"
                ) from None
    return lines


def _is_last(path: Path, number: int) -> bool:
    return number == len(path.read_text(encoding="utf-8").splitlines())


def _try_open(file: Path) -> Image.Image | str:
    try:
        return load_image(file)
    except UserError as error:
        return str(error)
