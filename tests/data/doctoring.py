"""Small data sets for the tests of `mmchat data check`, and readers of its output."""

from pathlib import Path

import numpy as np
from PIL import Image

from mmchat.cli.main import main
from mmchat.data.config import DataConfig
from mmchat.data.doctor.run import CheckRequest
from mmchat.files import read_json_lines
from tests.data.storing import write_jsonl

OUTPUTS = ("quarantine.jsonl", "warnings.jsonl", "clean.npz", "findings.json")


def command(capsys, *words) -> tuple[int, str, str]:
    """`mmchat data check ...` in this process: exit status, stdout, stderr."""
    capsys.readouterr()
    try:
        status = main(["data", "check", *map(str, words)])
    except SystemExit as stop:
        status = stop.code
    return (status, *capsys.readouterr())


def scene(seed: int, width: int = 64, height: int = 64) -> Image.Image:
    """An image with something in it; another seed is another image."""
    blocks = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.BICUBIC)


def record(name: str, image: str | None = None, question: str = "", answer: str = "Yes.") -> dict:
    question = question or f"What is in {name}?"
    turns = [{"from": "human", "value": "<image>\n" * bool(image) + question}, {"from": "gpt", "value": answer}]
    return {"id": name, "conversations": turns} | ({"image": image} if image else {})


def ten_records(tmp_path: Path) -> Path:
    """Ten records with an image each: c has an empty answer, e no image, g a turned one; i repeats h."""
    for number, name in enumerate("abcdefghij"):
        scene(number).save(tmp_path / f"{name}.png")
    exif = Image.Exif()
    exif[0x0112] = 8
    scene(6).save(tmp_path / "g.png", exif=exif)
    (tmp_path / "i.png").write_bytes((tmp_path / "h.png").read_bytes())
    items = [record(name, f"{name}.png") for name in "abcdefghij"]
    items[2]["conversations"][1]["value"] = ""
    items[8]["conversations"] = items[7]["conversations"]
    (tmp_path / "e.png").unlink()
    return write_jsonl(tmp_path / "records.jsonl", items)


def ask(path: Path, out: Path, **more) -> CheckRequest:
    return CheckRequest(DataConfig(path=str(path)), out, workers=0, **more)


def kinds(out: Path) -> dict[str, str]:
    """id -> kind, of every finding"""
    lines = [line for name in OUTPUTS[:2] for line in read_json_lines(out / name)]
    assert len(lines) == len({line["id"] for line in lines})
    return {line["id"]: line["kind"] for line in lines}
