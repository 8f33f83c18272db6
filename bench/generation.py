"""Speed of captioning: transformers' LlavaForConditionalGeneration one by one and in padded batches, vLLM, and mmchat.

All have the same weights and images. Weights are random, so the length of each caption is set in advance. In fp32 all
variants must generate the same ids. Each variant runs in its own process, and the variants alternate. vLLM takes part
with `--vllm PYTHON`, the interpreter of its environment (scripts/foreign/vllm.sh). README.md explains the output.

    python bench/generation.py
    python bench/generation.py --images 16 --rounds 1
    python bench/generation.py --shape 0.1b-llama --vllm .venv-vllm/bin/python
"""

import argparse
import base64
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from side_by_side.caption_runs import PADDED, PROMPT, measure
from side_by_side.model_shapes import SHAPES
from side_by_side.random_images import draw_clouds
from train import HERE, hardware, log

from mmchat.command_line.quiet import quiet_libraries
from mmchat.cpu_settings import missing_settings
from mmchat.files import read_json, write_json

VARIANTS = ("alone", "padded", "engine")
SHORTEST, LONGEST, MEAN, SIGMA = 10, 137, 59, 0.5
"""Tokens of a caption including the stop token: lognormal."""
ENVIRONMENTS = {"default": {}, "tuned": missing_settings()}
"""Variables of all variants: none, or those that `mmchat caption` sets for itself."""
CHECKED = 8
"""Images that are captioned in fp32, to compare ids."""
MARGIN = 1e-4
"""Logits that are closer are a tie."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="0.1b", choices=SHAPES)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--slots", type=int, default=16, help="requests at once in mmchat's engine and in vLLM")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vllm", metavar="PYTHON", help="interpreter of an environment with vLLM")
    parser.add_argument("--environment", default="tuned", choices=ENVIRONMENTS, help="of all variants, on a CPU")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/generation.json"))
    parser.add_argument("--variant", nargs=4, metavar=("NAME", "FOLDER", "MODEL", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    quiet_libraries()
    if arguments.variant:
        name, folder, model, out = arguments.variant
        work = Path(folder), arguments.images
        write_json(Path(out), measure(name, Path(folder) / model, *files_and_lengths(*work), arguments.slots))
        return
    variants = (*VARIANTS, "vllm") if arguments.vllm else VARIANTS
    os.environ.update(ENVIRONMENTS[arguments.environment])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log(f"writing the workload: {SHAPES[arguments.shape].named_after}")
        write_workload(folder, arguments.shape, arguments.images, bool(arguments.vllm))

        def run_all(model: str, images: int, slots: int) -> dict[str, dict[str, Any]]:
            return {variant: run(variant, folder, model, images, slots, arguments.vllm) for variant in variants}

        in_fp32 = run_all("fp32", min(CHECKED, arguments.images), CHECKED // 2)
        ties = refuse_different(in_fp32)
        rounds = []
        for number in range(1, arguments.rounds + 1):
            rounds.append(run_all("bf16", arguments.images, arguments.slots))
            log(f"round {number}: {summary(rounds[-1:])}")
    work = f"{arguments.shape}, {arguments.images} captions, environment {arguments.environment}"
    line = f"{work}: {summary(rounds)}; ids in fp32 are equal" + (f" but for {ties} ties" if ties else "")
    options = {**vars(arguments), "out": str(arguments.out)}
    written = {"line": line, "options": options, "hardware": hardware(), "rounds": rounds}
    write_json(arguments.out, {"date": time.strftime("%Y-%m-%d"), **written})
    print(line)


def write_workload(folder: Path, shape: str, images: int, exported: bool = False) -> None:
    """The same model in `fp32/` and `bf16/`, `images/`, and the length of each caption in `lengths.json`.

    With `exported`, `fp32-hf/` and `bf16-hf/` hold it as transformers' own class.
    """
    from side_by_side.workload import SLOT_TOKENS, write_model, write_tokenizer

    from mmchat.model.directory import load_assistant

    write_tokenizer(folder / "tokenizer", SHAPES[shape].language["vocab_size"] - SLOT_TOKENS)
    write_model(folder, SHAPES[shape])
    (folder / "model").rename(folder / "fp32")
    model, processor = load_assistant(folder / "fp32", dtype="bfloat16")
    model.save_pretrained(folder / "bf16", max_shard_size="1TB")
    processor.save_pretrained(folder / "bf16")
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for number in range(images):
        draw_clouds(rng, (640, 480)).save(folder / "images" / f"{number:03}.jpg")
    write_json(folder / "lengths.json", caption_lengths(images))
    for name in ("fp32", "bf16") if exported else ():
        command = ["mmchat", "export", str(folder / name), "--to", "hf", "--out", str(folder / f"{name}-hf")]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def caption_lengths(count: int) -> list[int]:
    drawn = np.random.default_rng(0).lognormal(np.log(MEAN) - SIGMA**2 / 2, SIGMA, count)
    return np.clip(np.round(drawn), SHORTEST, LONGEST).astype(int).tolist()


def files_and_lengths(folder: Path, images: int) -> tuple[list[Path], list[int]]:
    return sorted((folder / "images").iterdir())[:images], read_json(folder / "lengths.json")[:images]


def run(variant: str, folder: Path, model: str, images: int, slots: int, vllm: str | None) -> dict[str, Any]:
    """Measure one variant in its own process."""
    _, lengths = files_and_lengths(folder, images)
    if variant == "vllm":
        assert vllm is not None
        measured = run_vllm(
            vllm, folder / f"{model}-hf", {"fp32": "float32", "bf16": "bfloat16"}[model], folder, images, slots
        )
    else:
        out = folder / "measured.json"
        command = [sys.executable, str(HERE / "generation.py"), "--variant", variant, str(folder), model, str(out)]
        command += ["--images", str(images), "--slots", str(slots)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            sys.exit(f"{done.stdout}\n{variant} failed with exit status {done.returncode}")
        measured = json.loads(out.read_text())
    return {"tokens": sum(lengths), **measured}


def run_vllm(python: str, model: Path, dtype: str, folder: Path, images: int, slots: int) -> dict[str, Any]:
    files, lengths = files_and_lengths(folder, images)
    encoded = [base64.b64encode(file.read_bytes()).decode() for file in files]
    work = json.dumps({"images": encoded, "lengths": lengths, "prompt": PROMPT})
    command = [python, str(HERE / "side_by_side" / "vllm_captions.py"), str(model), dtype, str(slots)]
    done = subprocess.run(command, input=work, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{done.stderr}\nvllm failed with exit status {done.returncode}")
    return json.loads(done.stdout)


def refuse_different(measured: dict[str, dict[str, Any]]) -> int:
    """End the program if a variant made other ids. The last of each caption is the stop token, which is given.

    Where transformers' two best tokens are closer than `MARGIN`, rounding decides, and the rest of that caption is not
    compared.

    Returns:
        How many captions part at such a tie.
    """
    ties = 0
    expected, margins = measured["alone"]["ids"], measured["alone"]["margins"]
    for variant in measured:
        for number, ids in enumerate(measured[variant]["ids"]):
            pairs = zip(ids[:-1], expected[number][:-1], strict=True)
            first = next((place for place, (one, other) in enumerate(pairs) if one != other), None)
            if first is None:
                continue
            if margins[number][first] > MARGIN:
                sys.exit(
                    f"{variant} generated another token {first} of caption {number} in fp32 than transformers one by "
                    f"one; the two best are {margins[number][first]:.1e} apart there"
                )
            ties += 1
    return ties


def summary(rounds: list[dict[str, dict[str, Any]]]) -> str:
    """The engine's speed, and its ratio to the others."""
    names = {"alone": "transformers' one by one", "padded": f"in batches of {PADDED}", "vllm": "vLLM's"}

    def ratio(variant: str, clock: str) -> float:
        return median(one[variant][clock] / one["engine"][clock] for one in rounds)

    rate = median(one["engine"]["tokens"] / one["engine"]["seconds"] for one in rounds)
    ratios = [
        f"{ratio(variant, 'seconds'):.2f} x {name} (by CPU time {ratio(variant, 'cpu_seconds'):.2f})"
        for variant, name in names.items()
        if variant in rounds[0]
    ]
    return ", ".join([f"engine {rate:,.0f} tokens/s", *ratios])


if __name__ == "__main__":
    main()
