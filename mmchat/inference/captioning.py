"""Captioning a folder: batches, one JSON line per picture, resumable. A broken picture is a line with its error."""

import json
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mmchat.errors import UserError
from mmchat.files import write_json_lines
from mmchat.images import load_image
from mmchat.inference.generator import Generator
from mmchat.progress import progress_bar

_LINE_START = b'{"path": "'


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
    write_json_lines(out, kept.values())
    missing = [file for file in files if str(file) not in kept]
    summary = CaptionSummary(skipped=len(files) - len(missing))
    with out.open("a", encoding="utf-8") as sink, progress_bar("captioning", len(missing)) as bar:
        for start in range(0, len(missing), batch_size):
            batch = missing[start : start + batch_size]
            opened = [_try_open(file) for file in batch]
            pictures = [picture for picture in opened if isinstance(picture, Image.Image)]
            captions = iter(generator.caption(pictures, prompt, batch_size=batch_size, max_new_tokens=max_new_tokens))
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
    """path -> line of an earlier run.

    Raises:
        UserError: the file holds something else, which is not ours to overwrite.
    """
    if not out.exists():
        return {}
    try:
        # Bytes: a line may end inside a character. Not splitlines(), which splits at U+2028 and its like, too.
        *lines, cut = out.read_bytes().split(b"\n")
    except IsADirectoryError:
        raise UserError(f"{out} is a folder; name a file as --out") from None
    if cut and not (cut.startswith(_LINE_START) or _LINE_START.startswith(cut)):
        lines.append(cut)  # not what a killed run leaves
    finished: dict[str, dict] = {}
    for number, text in enumerate(lines, 1):
        try:
            line = json.loads(text)
            if line.keys() not in ({"path", "caption"}, {"path", "error"}):
                raise ValueError
        except (ValueError, AttributeError):
            raise UserError(
                f"{out}:{number} is no line of captions, so this file is not overwritten; name another --out"
            ) from None
        finished[line["path"]] = line
    return finished


def _try_open(file: Path) -> Image.Image | str:
    try:
        return load_image(file)
    except UserError as error:
        return str(error)
