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
    (tmp_path / "moved").mkdir()
    write_config(tmp_path / "moved" / "config.yaml", **values | {"model": "nowhere"})
    (tmp_path / "tower.json").write_text("{}")
    for name in ("a", "b"):
        (tmp_path / "classes" / name).mkdir(parents=True)
        make_image().save(tmp_path / "classes" / name / "image.png")
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
        "plan run.yaml --gpu RTX-9090": "--gpu RTX-9090: not in the table; there are A100-PCIE-40GB",
        "plan run.yaml --model nowhere": "model directory nowhere does not exist. If an earlier stage will write it",
        "plan run.yaml --data.path none.json": "data file none.json does not exist",
        "plan run.yaml --ranks 3": "batch_size 4 is not a multiple of micro_batch_size 1 x 3 ranks",
        "plan run.yaml --mfu 2": "--mfu must be above 0 and at most 1, found 2.0",
        "report nowhere": "nowhere",
        f"chat {assistant_dir} --temperature -1 why?": "argument --temperature: expected a number from 0 on, found",
        f"caption {assistant_dir} image.png --out a.jsonl --device gpu": "argument --device: expected cpu, cuda, ",
        f"ocr {assistant_dir} none.pdf --out a.md": "none.pdf does not exist",
        f"ocr {assistant_dir} none.pdf --out a.doc": "a.doc",
        "demo --model other": "other holds a model of type 'llama'",
        f"demo --model {assistant_dir} --examples nowhere": "--examples nowhere is not a folder",
        f"demo --model {assistant_dir} --port 70000": "cannot listen on port 70000",
        f"serve {assistant_dir} --port 70000": "cannot listen on port 70000",
        f"serve {assistant_dir} --api-key-file nowhere": "API key file nowhere cannot be read",
        "init --language nowhere --vision tower.json --out x": "language model 'nowhere' does not exist; give a dir",
        "init --language other --vision none.json --out x": "vision tower 'none.json' does not exist",
        "init --language other --vision tower.json --tokenizer none.json --out x": "tokenizer 'none.json' does not ",
        "init --language other --vision tower.json --template nosuch --out x": "unknown conversation template 'nosuch'",
        "init --language other --vision tower.json --max-tiles 3 --out x": "--max-tiles belongs to --fit tiles or any",
        "init --language other --vision tower.json --projector a --projector b --out x": "--projector is given 2 times",
        "init --language other --vision tower.json --projector-weights a.bin --out x": "projector weights a.bin do",
        "resize nowhere --image-size 448 --out x": "model directory nowhere does not exist",
        f"resize {assistant_dir} --image-size 28 --image-size 28 --out x": "--image-size is given 2 times for 1 vision",
        "import nowhere x": "model 'nowhere' does not exist",
        "import other x --base none.json": "base model 'none.json' does not exist",
        "export nowhere --to hf --out x": "model directory nowhere does not exist",
        f"export {assistant_dir} --to nosuch --out x": "argument --to: invalid choice: 'nosuch' (choose from ",
        f"export {assistant_dir} --to hf --dtype f16 --out x": "export to hf has no option 'dtype'",
        "merge nowhere --out x": "adapter nowhere does not exist; a run with lora writes it into its run directory",
        "merge adapter --out x": "adapter is not a complete adapter directory: it has no adapter_config.json",
        "replay nowhere --step 1": "config nowhere/config.yaml does not exist",
        "replay begun --step 0": "argument --step: expected a number from 1 on, found '0'",
        "replay moved --step 1": "model directory nowhere does not exist",
        "data check nowhere.json": "data file nowhere.json does not exist",
        "data check image.png --model nowhere": "model directory nowhere does not exist",
        f"data show nowhere.json --model {assistant_dir}": "data file nowhere.json does not exist",
        "data show image.png --template nosuch": "unknown conversation template 'nosuch'",
        "data index image.png --model other": "other holds a model of type 'llama'",
        "clip init --vision nowhere --text other --tokenizer other --out x": "vision tower 'nowhere' does not exist",
        "clip init --vision other --text nowhere --tokenizer other --out x": "text encoder 'nowhere' does not exist",
        "clip init --vision other --text other --tokenizer nowhere --out x": "tokenizer 'nowhere' does not exist",
        "clip convert nowhere --out x": "dual encoder 'nowhere' does not exist",
        "clip convert other --tokenizer nowhere --out x": "tokenizer 'nowhere' does not exist",
        "clip export nowhere --out x": "dual encoder 'nowhere' does not exist",
        f"clip export {assistant_dir} --out x": "holds a model of type 'mmchat', expected a dual encoder",
        "clip classify nowhere image.png --labels a,b": "dual encoder 'nowhere' does not exist",
        "clip eval nowhere classes": "dual encoder 'nowhere' does not exist",
        "clip eval other none.json": "data file none.json does not exist",
        "clip eval nowhere none.json --retrieval": "dual encoder 'nowhere' does not exist",
        "clip eval other none.json --retrieval": "data file none.json does not exist",
        "clip probe nowhere --train classes --test classes": "vision tower 'nowhere' does not exist",
        "clip probe other --train nowhere --test classes": "data file nowhere does not exist",
        "clip search index nowhere --ckpt other --out x": "nowhere does not exist",
        "clip search index classes --ckpt nowhere --out x": "dual encoder 'nowhere' does not exist",
        "clip search query nowhere.index text": "nowhere.index does not exist; make it with `mmchat clip search index",
        "vision inspect nowhere": "vision tower 'nowhere' does not exist",
        "vision inspect other --image none.png": "image none.png does not exist",
        "vision init nowhere --classes classes --out x": "vision tower 'nowhere' does not exist",
        "vision init other --classes nowhere --out x": "data file nowhere does not exist",
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


def test_choices_of_export_are_those_that_exist():
    """`mmchat export` names them without importing what writes them."""
    from mmchat.cli.export import FORMATS, GGUF_DTYPES
    from mmchat.conversion.exporting import HF
    from mmchat.conversion.formats import TARGETS
    from mmchat.conversion.gguf.gguf_file import DTYPES

    assert (HF, *(target.name for target in TARGETS)) == FORMATS
    assert set(GGUF_DTYPES) == set(DTYPES)


def test_a_run_without_lora_does_not_import_peft():
    """That takes a second on every rank, and with bitsandbytes two."""
    code = "import sys, mmchat.training.trainer, mmchat.planning.plan; sys.exit('peft' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
