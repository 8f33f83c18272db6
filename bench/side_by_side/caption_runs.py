"""The variants of `bench/generation.py` that run in this environment: transformers twice, and mmchat's engine."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

PROMPT = "w1 w2 w3"
PADDED = 16
"""Batch size of `padded`; images are in input order."""


def measure(variant: str, directory: Path, files: list[Path], lengths: list[int], slots: int) -> dict[str, Any]:
    """Caption all files once, after a warm-up.

    Args:
        variant: `alone`, `padded` or `engine`.
        directory: The model.
        files: The images.
        lengths: Tokens of each caption, the stop token included.
        slots: Of the engine.

    Returns:
        `ids`, `seconds` and `cpu_seconds`; for transformers the margins between the two best tokens, for the engine the
        mean batch.
    """
    stops = GenerationConfig.from_pretrained(directory).eos_token_id
    if variant == "engine":
        work = _engine(directory, files, lengths, stops, slots)
    else:
        work = _transformers(directory, files, lengths, stops, 1 if variant == "alone" else PADDED)
    begun, cpu = time.perf_counter(), time.process_time()
    seen = work()
    seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    assert [len(ids) for ids in seen["ids"]] == lengths, "captions do not have the forced lengths"
    return {"seconds": seconds, "cpu_seconds": cpu, **seen}


class ForcedLengths:
    """A forward hook that ends each caption at its given length.

    Images come in order, in batches of any size. A forward of more than one token per row starts the next batch.

    Args:
        lengths: Tokens of each caption, the stop token included.
        stops: Ids of the stop tokens; captions end with the first.

    Attributes:
        ids: Generated ids by image.
        margins: Between the logits of the two best tokens, for each of the ids.
    """

    def __init__(self, lengths: list[int], stops: list[int]) -> None:
        self.lengths, self.stops = lengths, stops
        self.ids: list[list[int]] = []
        self.margins: list[list[float]] = []
        self._batch_start = 0

    def __call__(self, _model: torch.nn.Module, _args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        logits = output.logits[:, -1]
        if kwargs["input_ids"].shape[1] > 1:
            self._batch_start = len(self.ids)
            self.ids += [[] for _ in logits]
            self.margins += [[] for _ in logits]
        logits[:, self.stops] = -torch.inf
        best = logits.topk(2)
        margins = (best.values[:, 0] - best.values[:, 1]).tolist()
        for row, token in enumerate(best.indices[:, 0].tolist()):
            image = self._batch_start + row
            ids = self.ids[image]
            left = self.lengths[image] - len(ids)
            if left > 0:
                ids.append(token if left > 1 else self.stops[0])
                self.margins[image].append(margins[row])
            if left <= 1:
                logits[row, self.stops[0]] = torch.inf


def _engine(directory: Path, files: list[Path], lengths: list[int], stops: list[int], slots: int) -> Callable:
    """A function that captions all files as `mmchat caption` does: worker threads read them and make the prompts."""
    from mmchat.inference.engine import EngineSettings, Request
    from mmchat.inference.generator import Generator

    generator = Generator(directory, settings=EngineSettings(slots=slots))

    def forbid_stops(_model: torch.nn.Module, _args: tuple, output: Any) -> None:
        output.logits[..., stops] = -torch.inf

    generator.model.language_model.register_forward_hook(forbid_stops)

    def submit(file: Path, tokens: int):
        prompt = partial(generator.prompt, *generator.conversation(PROMPT, file, ()))
        return generator.engine.submit(Request(prompt, max_new_tokens=tokens, eos_token_id=()))

    submit(files[0], 2).result()
    counters = replace(generator.engine.counters)

    def work() -> dict[str, Any]:
        handles = [submit(file, tokens) for file, tokens in zip(files, lengths, strict=True)]
        # The others end with a stop token, which is the last that they count.
        ids = [[*handle.result().ids[:-1], stops[0]] for handle in handles]
        now = generator.engine.counters
        mean_batch = (now.decoded - counters.decoded) / (now.decode_steps - counters.decode_steps)
        return {"ids": ids, "mean_batch": mean_batch}

    return work


def _transformers(directory: Path, files: list[Path], lengths: list[int], stops: list[int], batch: int) -> Callable:
    """A function that captions all images in batches. Pixels and prompts are prepared in advance."""
    from mmchat.images import load_image
    from mmchat.model.directory import load_processor
    from mmchat.model.processor import pad_left
    from side_by_side.reference_run import open_llava

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

    caption(pixels[:1], 2)
    forced = ForcedLengths(lengths, stops)
    model.register_forward_hook(forced, with_kwargs=True)

    def work() -> dict[str, Any]:
        for start in range(0, len(pixels), batch):
            caption(pixels[start : start + batch], max(lengths))
        return {"ids": forced.ids, "margins": forced.margins}

    return work
