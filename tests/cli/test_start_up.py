"""Start-up: a mistake is reported before anything heavy is imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.launching import write_config
from tests.training_fixtures import run_values, write_records

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "deepspeed", "accelerate", "peft", "datasets", "scipy", "sklearn", "pandas", "gradio")
SECONDS = 1.0
"""CPU time of any mistake. A program that has been started already, so that one process can make all of them."""
PROGRAM = f"""
import contextlib, io, json, sys, time
from mmchat.cli.main import main
for line in json.load(sys.stdin):
    start, said = time.process_time(), io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            main(line)
        except SystemExit as stop:
            status = stop.code
    loaded = [name for name in {HEAVY} if name in sys.modules]
    print(json.dumps([line, status, said.getvalue(), loaded, time.process_time() - start]), flush=True)
"""


def test_mistakes_are_reported_before_anything_heavy_is_imported(tmp_path, make_image, assistant_dir):
    make_image().save(tmp_path / "image.png")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "base.json").write_text("{}")
    (tmp_path / "begun").mkdir()
    (tmp_path / "empty.yaml").write_text("steps: many\n")
    values = run_values(tmp_path, assistant_dir, write_records(tmp_path / "data", 2), batch_size=4)
    write_config(tmp_path / "run.yaml", **values)
    begun = write_config(tmp_path / "begun" / "config.yaml", **values)
    elsewhere = str(tmp_path / "nowhere.json")
    mistakes = {
        "chat nowhere why?": "model directory nowhere does not exist; make one with `mmchat init`, or train first",
        "chat other why?": "other holds a model of type 'llama', expected an assistant (mmchat); it is a language m",
        "chat adapter why?": "adapter holds a LoRA adapter, not a whole model; `mmchat merge adapter --out DIR`",
        f"chat {assistant_dir} --image none.png why?": "image none.png does not exist",
        "caption nowhere image.png --out a.jsonl": "model directory nowhere does not exist",
        f"caption {assistant_dir} none.png --out a.jsonl": "none.png does not exist",
        f"caption {assistant_dir} image.png --out a.doc": "a.doc",
        "ocr other image.png --out a.md": "other holds a model of type 'llama'",
        f"eval {assistant_dir} none.json": "data file none.json does not exist",
        "serve nowhere": "model directory nowhere does not exist",
        "train nosuch.yaml": "config nosuch.yaml does not exist",
        "train empty.yaml": "empty.yaml: steps:",
        "train run.yaml --model nowhere": "model directory nowhere does not exist",
        f"train run.yaml --data.path {elsewhere}": f"data file {elsewhere} does not exist",
        "train run.yaml --data.image_root nowhere": "image_root nowhere of ",
        "train run.yaml --validation.path none.json": "data file none.json does not exist",
        "train run.yaml --data.index none.npz": "index none.npz of ",
        "train run.yaml --ranks 3": "batch_size 4 is not a multiple of micro_batch_size 1 x 3 ranks",
        "train run.yaml --distributed.deepspeed none.json": "none.json does not exist",
        "train run.yaml --run_dir begun": "begun already holds a run; add --resume to resume it",
        f"train {begun} --run_dir begun --resume --optimizer.lr 1": "optimizer.lr: 0.001 -> 1.0",
        "plan nosuch.yaml": "config nosuch.yaml does not exist",
        "report nowhere": "nowhere",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps([line.split() for line in mistakes]),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    for line, reported in zip(mistakes, done.stdout.splitlines(), strict=True):
        words, status, said, loaded, seconds = json.loads(reported)
        assert (status, words) == (2, line.split()), said
        assert said.startswith("error: ") and mistakes[line] in said, (line, said)
        assert not loaded, f"{line} has imported {loaded}"
        assert seconds < SECONDS, f"{line} took {seconds:.2f} s"
