"""Speed of captioning: transformers' LlavaForConditionalGeneration one by one and in padded batches, and mmchat.

mmchat is measured twice: the job of `mmchat caption`, and the engine. All have the same weights and images. Weights are
random, so the length of each caption is set in advance. In fp32 all variants must generate the same ids. Each variant
runs in its own process, and the variants alternate. README.md explains the output.

    python bench/generation.py
    python bench/generation.py --images 16 --rounds 1
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from side_by_side.model_shapes import SHAPES
from side_by_side.random_images import draw_clouds
from train import HERE, hardware, log
from transformers import GenerationConfig

from mmchat.command_line.quiet import quiet_libraries
from mmchat.files import read_json, write_json

VARIANTS = ("alone", "padded", "caption", "engine")
OURS = ("caption", "engine")
PADDED = 16
"""Batch size of `padded`; images are in input order."""
SHORTEST, LONGEST, MEAN, SIGMA = 10, 137, 59, 0.5
"""Tokens of a caption including the stop token: lognormal."""
PROMPT = "w1 w2 w3"
CHECKED = 8
"""Images that are captioned in fp32, to compare ids."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="0.1b", choices=SHAPES)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument(
        "--batch-size", type=int, default=8, help="batch size of `caption`; the default is that of `mmchat caption`"
    )
    parser.add_argument("--slots", type=int, default=16, help="slots of the engine")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/generation.json"))
    parser.add_argument("--variant", nargs=4, metavar=("NAME", "FOLDER", "MODEL", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    quiet_libraries()
    if arguments.variant:
        name, folder, model, out = arguments.variant
        write_json(Path(out), measure(name, Path(folder), model, arguments))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log(f"writing the workload: {SHAPES[arguments.shape].named_after}")
        write_workload(folder, arguments.shape, arguments.images)
        in_fp32 = {variant: run(variant, folder, "fp32", min(CHECKED, arguments.images)) for variant in VARIANTS}
        different = [variant for variant in VARIANTS if in_fp32[variant]["ids"] != in_fp32["alone"]["ids"]]
        if different:
            sys.exit(f"{', '.join(different)} generated other ids in fp32 than transformers one by one")
        rounds = []
        for number in range(1, arguments.rounds + 1):
            settings = ("bf16", arguments.images, arguments.batch_size, arguments.slots)
            rounds.append({variant: run(variant, folder, *settings) for variant in VARIANTS})
            log(f"round {number}: {summary(rounds[-1:])}")
    line = f"{arguments.shape}, {arguments.images} captions: {summary(rounds)}; ids in fp32 are equal"
    options = {**vars(arguments), "out": str(arguments.out)}
    written = {"line": line, "options": options, "hardware": hardware(), "rounds": rounds}
    write_json(arguments.out, {"date": time.strftime("%Y-%m-%d"), **written})
    print(line)


def write_workload(folder: Path, shape: str, images: int) -> None:
    """The same model in `fp32/` and `bf16/`, `images/`, and the length of each caption in `lengths.json`."""
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


def caption_lengths(count: int) -> list[int]:
    drawn = np.random.default_rng(0).lognormal(np.log(MEAN) - SIGMA**2 / 2, SIGMA, count)
    return np.clip(np.round(drawn), SHORTEST, LONGEST).astype(int).tolist()


def run(
    variant: str, folder: Path, model: str, images: int, batch_size: int = CHECKED // 2, slots: int = CHECKED // 2
) -> dict[str, Any]:
    """Measure one variant in its own process."""
    out = folder / "measured.json"
    command = [sys.executable, str(HERE / "generation.py"), "--variant", variant, str(folder), model, str(out)]
    command += ["--images", str(images), "--batch-size", str(batch_size), "--slots", str(slots)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"{done.stdout}\n{variant} failed with exit status {done.returncode}")
    return json.loads(out.read_text())


class ForcedLengths:
    """A forward hook that ends each caption at its given length.

    Images come in order, in batches of any size. A forward of more than one token per row starts the next batch.

    Args:
        lengths: tokens of each caption, the stop token included.
        stops: ids of the stop tokens; captions end with the first.

    Attributes:
        ids: generated ids by image.
    """

    def __init__(self, lengths: list[int], stops: list[int]) -> None:
        self.lengths, self.stops = lengths, stops
        self.ids: list[list[int]] = []
        self._batch_start = 0

    def __call__(self, _model: torch.nn.Module, _args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        logits = output.logits[:, -1]
        if kwargs["input_ids"].shape[1] > 1:
            self._batch_start = len(self.ids)
            self.ids += [[] for _ in logits]
        logits[:, self.stops] = -torch.inf
        chosen = logits.argmax(dim=-1).tolist()
        for row, (ids, token) in enumerate(zip(self.ids[self._batch_start :], chosen, strict=True)):
            left = self.lengths[self._batch_start + row] - len(ids)
            if left > 0:
                ids.append(token if left > 1 else self.stops[0])
            if left <= 1:
                logits[row, self.stops[0]] = torch.inf


def measure(variant: str, folder: Path, model: str, arguments: argparse.Namespace) -> dict[str, Any]:
    files = sorted((folder / "images").iterdir())[: arguments.images]
    lengths = read_json(folder / "lengths.json")[: arguments.images]
    stops = GenerationConfig.from_pretrained(folder / model).eos_token_id
    if variant == "engine":
        work = engine_variant(folder / model, files, lengths, stops, arguments.slots)
    else:
        if variant == "caption":
            model_object, caption = caption_variant(folder, model, files, arguments.batch_size)
        else:
            batch = 1 if variant == "alone" else PADDED
            model_object, caption = transformers_variant(folder / model, files, stops, batch)
        forced = ForcedLengths(lengths, stops)
        model_object.register_forward_hook(forced, with_kwargs=True)

        def work() -> dict[str, Any]:
            caption()
            return {"ids": forced.ids}

    begun, cpu = time.perf_counter(), time.process_time()
    seen = work()
    seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    assert [len(ids) for ids in seen["ids"]] == lengths, "captions do not have the forced lengths"
    return {"tokens": sum(lengths), "seconds": seconds, "cpu_seconds": cpu, **seen}


def caption_variant(folder: Path, model: str, files: list[Path], batch_size: int):
    """The model, and a function that captions all files as `mmchat caption` does."""
    from mmchat.inference.captioning import caption_files
    from mmchat.inference.generator import Generator

    generator = Generator(folder / model)
    generator.caption(files[:1], PROMPT, max_new_tokens=2)

    def work() -> None:
        out = folder / f"captions-{time.time_ns()}.jsonl"
        caption_files(generator, files, out, PROMPT, batch_size, max_new_tokens=LONGEST)

    return generator.model, work


def engine_variant(directory: Path, files: list[Path], lengths: list[int], stops: list[int], slots: int):
    """A function that captions all files on the engine. Worker threads read the files and make the prompts."""
    from mmchat.images import load_image
    from mmchat.inference.engine import Engine, EngineSettings, Prompt, Request
    from mmchat.model.directory import load_assistant

    model, processor = load_assistant(directory)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")

    def prompt(file: Path) -> Prompt:
        image = load_image(file)
        parts = [{"type": "image"}, {"type": "text", "text": PROMPT}]
        layouts = processor.layouts([image.size])
        ids = processor.render([{"role": "user", "content": parts}], layouts, add_generation_prompt=True).input_ids
        return Prompt(ids, processor.image_inputs([[image]]))

    def forbid_stops(_model: torch.nn.Module, _args: tuple, output: Any) -> None:
        output.logits[..., stops] = -torch.inf

    length = len(prompt(files[0]).input_ids) + LONGEST
    engine = Engine(model, EngineSettings(slots=slots, max_length=length))
    model.language_model.register_forward_hook(forbid_stops)
    engine.submit(Request(prompt(files[0]), max_new_tokens=2)).result()
    counters = replace(engine.counters)

    def work() -> dict[str, Any]:
        handles = [
            engine.submit(Request(partial(prompt, file), max_new_tokens=tokens, eos_token_id=()))
            for file, tokens in zip(files, lengths, strict=True)
        ]
        # The others end with a stop token, which is the last that they count.
        ids = [[*handle.result().ids[:-1], stops[0]] for handle in handles]
        steps = engine.counters.decode_steps - counters.decode_steps
        return {"ids": ids, "mean_batch": (engine.counters.decoded - counters.decoded) / steps}

    return work


def transformers_variant(directory: Path, files: list[Path], stops: list[int], batch: int):
    """The model, and a function that captions all images. Pixels and prompts are prepared in advance."""
    from side_by_side.reference_run import open_llava

    from mmchat.images import load_image
    from mmchat.model.directory import load_processor
    from mmchat.model.processor import pad_left

    processor = load_processor(directory)
    dtype = torch.bfloat16 if directory.name == "bf16" else torch.float32
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = open_llava(directory, {}).to(device, dtype).eval()
    parts = [{"type": "image"}, {"type": "text", "text": PROMPT}]
    ids = processor.render([{"role": "user", "content": parts}], add_generation_prompt=True).input_ids
    pixels = [processor.image_processor([load_image(file)])["pixel_values"].to(device, dtype) for file in files]
    ends = {"eos_token_id": stops, "pad_token_id": processor.pad_token_id}

    @torch.inference_mode()
    def caption(chosen: list[torch.Tensor], longest: int) -> None:
        inputs = {
            name: value.to(device) for name, value in pad_left([ids] * len(chosen), processor.pad_token_id).items()
        }
        model.generate(**inputs, pixel_values=torch.cat(chosen), max_new_tokens=longest, do_sample=False, **ends)

    def work() -> None:
        for start in range(0, len(pixels), batch):
            caption(pixels[start : start + batch], LONGEST)

    caption(pixels[:1], 2)
    return model, work


def summary(rounds: list[dict[str, dict[str, Any]]]) -> str:

    def ratio(ours: str, variant: str, clock: str) -> float:
        return median(one[variant][clock] / one[ours][clock] for one in rounds)

    parts = []
    for ours in OURS:
        rate = median(one[ours]["tokens"] / one[ours]["seconds"] for one in rounds)
        ratios = [f"{ours} {rate:,.0f} tokens/s"]
        for variant, name in (("alone", "one by one"), ("padded", f"in batches of {PADDED}")):
            by_cpu = ratio(ours, variant, "cpu_seconds")
            wall = ratio(ours, variant, "seconds")
            ratios.append(f"{wall:.2f} x transformers' {name} (by CPU time {by_cpu:.2f})")
        parts.append(", ".join(ratios))
    return "; ".join(parts)


if __name__ == "__main__":
    main()
