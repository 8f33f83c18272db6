"""docs/architecture.md lists every function that one sample passes. The list is made by a trace and compared here.

    UPDATE_DOCS=1 python -m pytest tests/docs/test_sample_path.py

writes it again after a change of the code.
"""

import os
import re
import sys
from pathlib import Path

from mmchat.settings import validate
from mmchat.training.config import RunConfig
from tests.launching import ROOT
from tests.training_fixtures import opened, run_values, write_records

PAGE = ROOT / "docs" / "architecture.md"
LIST = re.compile(r"(?<=<!-- traced -->\n```text\n).*?(?=\n```)", re.DOTALL)


def traced(work) -> dict[Path, list[str]]:
    """File -> functions of ours that `work` calls, both in the order of their first call."""
    found: dict[Path, list[str]] = {}

    def watch(frame, event, _):
        path, name = Path(frame.f_code.co_filename), frame.f_code.co_qualname
        if event == "call" and ROOT / "mmchat" in path.parents and "<" not in name:
            names = found.setdefault(path.relative_to(ROOT / "mmchat"), [])
            if name not in names:
                names.append(name)

    sys.setprofile(watch)
    try:
        work()
    finally:
        sys.setprofile(None)
    return found


def test_the_path_of_a_sample(assistant_dir, tmp_path, monkeypatch):
    """One image, one tower, template vicuna_v1, padded: the second step, so that what happens once is left out."""
    monkeypatch.setenv("MMCHAT_CACHE", str(tmp_path / "cache"))
    data = write_records(tmp_path / "data", 4, images=1)
    values = run_values(tmp_path, assistant_dir, data, steps=3, batch_size=1)
    objective, dataloader = opened(validate(RunConfig, values, "test"))
    steps = dataloader.steps(0)
    next(steps)

    def step():
        _, batches = next(steps)
        objective.loss_sum(objective.model, batches[0], images_on_any_rank=True)

    files = traced(step)
    width = max(len(str(path)) for path in files)
    lines = [f"{path.as_posix():{width}}  {', '.join(names)}" for path, names in files.items()]
    lines.append(f"{sum(map(len, files.values()))} functions in {len(files)} files")
    text = PAGE.read_text(encoding="utf-8")
    if os.environ.get("UPDATE_DOCS"):
        text = LIST.sub(lambda _: "\n".join(lines), text)
        PAGE.write_text(text, encoding="utf-8")
    listed = LIST.search(text)
    assert listed is not None
    assert listed[0].split("\n") == lines
