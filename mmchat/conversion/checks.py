"""Compare an exported assistant with mmchat: the same inputs, computed here and by the program that it is for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

from mmchat.auto import MMChatForConditionalGeneration, MMChatProcessor
from mmchat.conversation import get_template
from mmchat.opening import opening
from mmchat.pretrained import load_strictly

TOLERANCE = 1e-4
"""Largest difference of logits between mmchat and the foreign program (fp32)."""
NEW_TOKENS = 32
TIE = 10 * TOLERANCE
"""Margin between the best two tokens below which greedy decoding may choose either."""
PIXEL_TOLERANCE = 0.02
"""Largest mean difference of normalised pixels."""
SAME_INPUTS = "equal token ids, and equal pixels but for rounding"
PROMPTS: dict[str, tuple[int, list[str]]] = {
    "1 image": (1, ["What is this?"]),
    "2 images": (2, ["What differs?"]),
    "text": (0, ["Count to ten."]),
    "2 rounds": (1, ["What is this?", "An image.", "And what else?"]),
}
"""Name of a sample -> number of images, which come first, and the texts of user and assistant in turn."""

Inputs = dict[str, Any]


@dataclass(frozen=True)
class Sample:
    """A prompt, and what mmchat computes for it in fp32."""

    name: str
    messages: list[dict[str, Any]]
    """In the chat dialect, contents as parts. The last is the user's."""
    images: list[Image.Image]
    inputs: Inputs
    """Inputs of `MMChatForConditionalGeneration` for the prompt and `images`."""
    logits: torch.Tensor
    """float[1, L, V]."""
    answer: list[int]
    """The greedy answer, `NEW_TOKENS` long: EOS is never chosen."""
    margins: list[float]
    """Difference between the best two logits at each token of `answer`."""


def reference_samples(model: MMChatForConditionalGeneration, processor: MMChatProcessor) -> list[Sample]:
    """What mmchat computes for one image, two images, text alone and a second round.

    A template of one exchange about an image (`plain`) gives the first two only.

    Args:
        model: The assistant, in fp32 and evaluation mode.
        processor: Its processor.
    """
    return [
        make_sample(model, processor, name, [_noise(number, processor) for number in range(count)], *texts)
        for name, (count, texts) in PROMPTS.items()
        if (count and len(texts) == 1) or not get_template(processor.template).one_exchange
    ]


def make_sample(
    model: MMChatForConditionalGeneration,
    processor: MMChatProcessor,
    name: str,
    images: list[Image.Image],
    *texts: str,
) -> Sample:
    """What mmchat computes for a conversation about images: texts of user and assistant in turn, the user's last."""
    messages = [
        {"role": ("user", "assistant")[number % 2], "content": [{"type": "text", "text": text}]}
        for number, text in enumerate(texts)
    ]
    messages[0]["content"] = [{"type": "image"}] * len(images) + messages[0]["content"]
    layouts = processor.layouts([image.size for image in images])
    ids = torch.tensor([processor.render(messages, layouts, add_generation_prompt=True).input_ids])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    inputs |= processor.image_inputs([images]) if images else {}
    return Sample(name, messages, images, inputs, _logits(model, inputs), *_greedy(model, inputs))


def compare_with_transformers(
    directory: Path,
    class_name: str,
    samples: Sequence[Sample],
    foreign_inputs: Callable[[Sample], Inputs] = lambda sample: sample.inputs,
) -> str:
    """Open a directory with a class of transformers and compare logits and greedy tokens.

    Args:
        directory: What was exported.
        class_name: The class.
        samples: What mmchat computes.
        foreign_inputs: Inputs of the class for a sample, where they differ from mmchat's.

    Returns:
        One line about what was compared.

    Raises:
        RuntimeError: The class computes something else.
        UserError: The class finds keys that are missing, left over or of another shape.
    """
    theirs = load_class(directory, class_name)
    largest = 0.0
    for sample in samples:
        inputs = foreign_inputs(sample)
        difference = (sample.logits - _logits(theirs, inputs)).abs().max().item()
        if not difference <= TOLERANCE:  # negated, so that NaN fails too
            raise RuntimeError(
                f"opened by {class_name}, {directory} gives other logits for {sample.name}: {difference:g}"
            )
        refuse_other_answer(sample, _greedy(theirs, inputs)[0], class_name)
        largest = max(largest, difference)
    names = ", ".join(sample.name for sample in samples)
    return f"{class_name} opened it: logits for {names} within {largest:.1g}, {NEW_TOKENS} greedy tokens equal"


def load_class(directory: Path, class_name: str) -> Any:
    """A class of transformers, opened strictly in fp32. Raises UserError as `load_strictly`."""
    return load_strictly(getattr(transformers, class_name), directory, dtype="float32").eval()


def answered_by(model: Any, sample: Sample, inputs: Inputs) -> Sample:
    """A sample with the answer of another model to other inputs."""
    answer, margins = _greedy(model, inputs)
    return replace(sample, answer=answer, margins=margins)


def compare_processor(
    directory: Path,
    samples: Sequence[Sample],
    foreign_inputs: Callable[[Sample], Inputs] = lambda sample: sample.inputs,
) -> str:
    """Open the processor in a directory with transformers and compare token ids and pixels.

    Args:
        directory: What was exported.
        samples: What mmchat computes.
        foreign_inputs: As in `compare_with_transformers`.

    Returns:
        One line about what was compared, or why nothing was: some processors of transformers need torchvision.

    Raises:
        RuntimeError: The processor makes other inputs.
    """
    try:
        theirs = transformers.AutoProcessor.from_pretrained(directory)
    except ImportError as error:
        reason = str(error).strip().splitlines()[0]
        if "torchvision" in reason.lower():
            reason = "transformers makes it only where torchvision is installed; `--check vllm` runs it beside vLLM"
        return f"its processor was NOT compared: {reason}"
    for sample in samples:
        with opening(directory, what="the chat template of the model"):  # a stranger's, which is copied as it is
            found = theirs.apply_chat_template(
                _with_images(sample), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            )
        refuse_other_inputs(sample, found, foreign_inputs(sample), directory)
    return f"{type(theirs).__name__} opened it: {SAME_INPUTS}"


def refuse_other_inputs(sample: Sample, found: Mapping[str, torch.Tensor], expected: Inputs, directory: Path) -> None:
    """Raise RuntimeError unless a processor of transformers made the inputs that are expected."""
    for name, value in expected.items():
        if not _same(found[name], value):
            raise RuntimeError(f"the processor in {directory} makes other {name} for {sample.name}")


def _with_images(sample: Sample) -> list[dict[str, Any]]:
    """The messages with each image in its place, as users of transformers write them."""
    images = iter(sample.images)

    def fill(part: dict[str, Any]) -> dict[str, Any]:
        return {**part, "image": next(images)} if part["type"] == "image" else part

    return [{**message, "content": [fill(part) for part in message["content"]]} for message in sample.messages]


def _same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether token ids are equal and pixels nearly: torchvision does not resize as Pillow to the bit."""
    if found.shape != expected.shape:
        return False
    if not expected.is_floating_point():
        return torch.equal(found, expected)
    return (found.float() - expected).abs().mean().item() <= PIXEL_TOLERANCE


def refuse_other_answer(sample: Sample, answer: list[int], program: str, tie: float = TIE) -> None:
    """Raise RuntimeError if an answer leaves mmchat's where the margin between the best two tokens exceeds `tie`."""
    for position, (expected, found, margin) in enumerate(zip(sample.answer, answer, sample.margins, strict=True)):
        if expected != found:
            if margin > tie:
                raise RuntimeError(
                    f"{program} answers {sample.name} with token {found} at position {position}, mmchat with "
                    f"{expected} and a margin of {margin:g}"
                )
            return


def _noise(number: int, processor: MMChatProcessor) -> Image.Image:
    """Smooth noise, wider than high and the reverse, so that every fit shows."""
    side = max(spec.image_size for spec in processor.image_processor.specs)
    coarse = np.random.default_rng(number).integers(0, 256, (7, 7, 3), np.uint8)
    size = ((2 * side, side), (side, side + side // 2))[number % 2]
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


@torch.no_grad()
def _logits(model: Any, inputs: Inputs) -> torch.Tensor:
    return model(**inputs).logits.float()


@torch.no_grad()
def _greedy(model: Any, inputs: Inputs) -> tuple[list[int], list[float]]:
    """The greedy answer and its margins."""
    output = model.generate(
        **inputs,
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        do_sample=False,
        num_beams=1,
        return_dict_in_generate=True,
        output_scores=True,
    )
    best = [scores[0].float().topk(2).values for scores in output.scores]
    return output.sequences[0, -NEW_TOKENS:].tolist(), [(first - second).item() for first, second in best]
