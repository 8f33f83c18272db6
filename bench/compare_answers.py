"""Ask an assistant and its exports the same questions, and print a Markdown table of where their answers are equal.

    python bench/compare_answers.py runs/portable/model data/quickstart/heldout.json --limit 50 \\
      --transformers runs/portable/hf --vllm runs/portable/hf --llamacpp runs/portable/gguf

All answers are greedy and in fp32. transformers runs in this interpreter, vLLM in that of `MMCHAT_VLLM_PYTHON`
(`scripts/foreign/vllm.sh` makes one) and llama.cpp in that of `MMCHAT_LLAMACPP_PYTHON` (`scripts/foreign/llamacpp.sh`).

transformers and vLLM must answer word for word as mmchat does. llama.cpp computes GELU in another way, so it may differ
where the best two tokens of mmchat's answer are within `TIE`, in at most `--ties` answers. Exit status 1: an answer
differs otherwise.
"""

import argparse
import base64
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from mmchat.command_line.errors import reporting
from mmchat.errors import UserError
from mmchat.evaluation.questions import Question, read_questions
from mmchat.files import write_text
from mmchat.inference.generator import Generator

TIE = 0.02
"""Margin in logits below which llama.cpp may choose another token."""
MAX_NEW_TOKENS = 64
CONTEXT = 512
ASK = Path(__file__).resolve().parents[1] / "scripts" / "foreign" / "ask.py"


@dataclass(frozen=True)
class Answers:
    """A program's answers, one per question.

    Attributes:
        program: Its name and version, for the table.
        texts: The answers.
        may_tie: Whether it may differ where mmchat's best two tokens are nearly equal.
    """

    program: str
    texts: list[str]
    may_tie: bool = False


@torch.inference_mode()
def ask_mmchat(model_dir: Path, questions: Sequence[Question]) -> tuple[Answers, list[float]]:
    """mmchat's answers, and of each the smallest difference between the best two logits of a token."""
    generator = Generator(model_dir, "cpu")
    model, processor = generator.model.float(), generator.processor
    texts, margins = [], []
    for question in questions:
        image = question.image.open()
        conversation, _ = generator.conversation(question.text, image, ())
        ids = processor.render(conversation, [1], add_generation_prompt=True).input_ids
        output = model.generate(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            **processor.image_processor([image]),
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
        texts.append(processor.tokenizer.decode(output.sequences[0, len(ids) :], skip_special_tokens=True).strip())
        best = torch.cat(output.logits).topk(2).values
        margins.append((best[:, 0] - best[:, 1]).min().item())
    return Answers("mmchat", texts), margins


def ask_foreign(python: str, program: str, directory: Path, questions: Sequence[Question]) -> Answers:
    """The answers of transformers or vLLM, by `ASK` in another process.

    Raises:
        UserError: The program fails.
    """
    asked = [{"image": _base64(question), "question": question.text} for question in questions]
    done = subprocess.run(
        [python, str(ASK), program, str(directory)], input=json.dumps(asked), capture_output=True, text=True
    )
    if done.returncode:
        raise UserError(f"{program} does not answer from {directory}: {done.stderr.strip()[-2000:]}")
    found = json.loads(done.stdout)
    return Answers(found["version"], found["answers"])


def ask_llamacpp(python: str, directory: Path, questions: Sequence[Question], tokenizer: Any) -> Answers:
    """llama.cpp's answers through its server."""
    from mmchat.conversion.gguf import llamacpp

    conversations = []
    for question in questions:
        image = _base64(question)
        url = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}}
        content = [url, {"type": "text", "text": question.text}]
        conversations.append({"messages": [{"role": "user", "content": content}], "images": [image]})
    found = llamacpp.ask_llamacpp(python, directory, conversations, MAX_NEW_TOKENS, CONTEXT)
    answered = [[token for token in answer["tokens"] if token >= 0] for answer in found["answers"]]
    texts = [tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in answered]
    return Answers(f"llama.cpp (xllamacpp {found['version']})", texts, may_tie=True)


def _base64(question: Question) -> str:
    return base64.b64encode(question.image.read()).decode()


def named_python(variable: str, script: str) -> str:
    """The interpreter that an environment variable names.

    Raises:
        UserError: It is not set.
    """
    if not os.environ.get(variable):
        raise UserError(
            f"{variable} is not set; `bash scripts/foreign/{script} DIR` makes an environment: set it to DIR/bin/python"
        )
    return os.environ[variable]


def table(questions: Sequence[Question], ours: Answers, margins: Sequence[float], others: Sequence[Answers]) -> str:
    """A Markdown table: each program, its number of equal answers, and the answers that differ."""
    lines = ["| program | equal answers | other answers (smallest margin of mmchat's) |", "|---|---|---|"]
    for answers in others:
        different = differences(ours, answers)
        shown = "; ".join(
            f"{Path(questions[n].image.name).name}, {questions[n].text} {answers.texts[n]!r}, not {ours.texts[n]!r} "
            f"({margins[n]:.4f})"
            for n in different
        )
        equal = len(questions) - len(different)
        lines.append(f"| {answers.program} | {equal} of {len(questions)} | {shown or '-'} |")
    return "\n".join(lines)


def differences(ours: Answers, theirs: Answers) -> list[int]:
    """Numbers of the questions that are answered in other words."""
    return [n for n, pair in enumerate(zip(ours.texts, theirs.texts, strict=True)) if pair[0] != pair[1]]


def is_accepted(ours: Answers, theirs: Answers, margins: Sequence[float], ties: int) -> bool:
    """Whether a program answers as mmchat does; see the head of this file."""
    different = differences(ours, theirs)
    if not theirs.may_tie:
        return not different
    return len(different) <= ties and all(margins[n] <= TIE for n in different)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="model directory of mmchat")
    parser.add_argument("questions", type=Path, help="questions in LLaVA's format, one image per record")
    parser.add_argument("--limit", type=int, default=50, help="ask the first N questions (default: 50)")
    parser.add_argument("--transformers", type=Path, metavar="DIR", help="what `mmchat export --to hf` wrote")
    parser.add_argument("--vllm", type=Path, metavar="DIR", help="the same")
    parser.add_argument("--llamacpp", type=Path, metavar="DIR", help="what `mmchat export --to gguf` wrote")
    parser.add_argument("--ties", type=int, default=2, help="answers that llama.cpp may give otherwise (default: 2)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the table to a file")
    arguments = parser.parse_args(argv)
    questions = read_questions(arguments.questions, arguments.questions.parent)[: arguments.limit]
    ours, margins = ask_mmchat(arguments.model, questions)
    others = []
    if arguments.transformers:
        others.append(ask_foreign(sys.executable, "transformers", arguments.transformers, questions))
    if arguments.vllm:
        others.append(ask_foreign(named_python("MMCHAT_VLLM_PYTHON", "vllm.sh"), "vllm", arguments.vllm, questions))
    if arguments.llamacpp:
        python = named_python("MMCHAT_LLAMACPP_PYTHON", "llamacpp.sh")
        tokenizer = AutoTokenizer.from_pretrained(arguments.model)
        others.append(ask_llamacpp(python, arguments.llamacpp, questions, tokenizer))
    lines = table(questions, ours, margins, others)
    print(lines)
    if arguments.out:
        write_text(arguments.out, lines + "\n")
    refused = [theirs.program for theirs in others if not is_accepted(ours, theirs, margins, arguments.ties)]
    if refused:
        print(f"answers of {', '.join(refused)} differ from mmchat's", file=sys.stderr)
    return bool(refused)


if __name__ == "__main__":
    with reporting():
        sys.exit(main())
