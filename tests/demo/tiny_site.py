"""A folder with tiny models that recite, and the demo as a process with a generator that is watched."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from gradio_client import Client

REPOSITORY = Path(__file__).parents[2]
DEMO = REPOSITORY / "demo"
TOKENIZER = REPOSITORY / "tests/fixtures/tokenizers/llama_like_legacy_false"
TOWER = {
    "family": "clip_vit",
    "backbone": {
        "image_size": 32,
        "patch_size": 16,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    },
    "preprocessing": {"mean": [0.5] * 3, "std": [0.5] * 3, "fit": "squash"},
}
LANGUAGE = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
}
MARKUP = ["▁<", "b", ">"]
FAILURE = "the accelerator <i>caught</i> fire"

# The app, with a generator that logs its calls, is slow, and fails when asked to.
SERVE = f"""
import json, os, runpy, sys, time
from mmchat.inference import Generator
submit = Generator.submit
SLOW = ("<b>", "Go on", "One?", "Two?", "Long?", "By key?")
def log(**values):
    print(json.dumps(values), file=open("calls.jsonl", "a"), flush=True)
class Watched:
    def __init__(self, answer, question):
        self.answer, self.question = answer, question
        self.result, self.logged, self.pieces = answer.result, False, 0
    def cancel(self):
        self.answer.cancel()
        if not self.logged:
            log(ended=self.question, pieces=self.pieces)
        self.logged = True
    def __iter__(self):
        for piece in self.answer:
            self.pieces += 1
            time.sleep(0.15 if self.question.startswith(SLOW) else 0.01)
            yield piece
            if self.question == "fail":
                raise RuntimeError({FAILURE!r})
def watched(self, messages, images=(), **options):
    question = messages[-1]["content"][-1]["text"]
    log(question=question, images=len(images), messages=messages, options=options)
    return Watched(submit(self, messages, images, **options), question)
Generator.submit = watched
sys.argv = ["demo/app.py", *sys.argv[1:]]
sys.path.insert(0, os.path.abspath("demo"))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def recite(model, tokenizer, first: int) -> str:
    """Set the head so that every token predicts the next one of a fixed text; returns the text."""
    words = [word for word in sorted(tokenizer.get_vocab()) if word[0] == "▁" and len(word) > 3 and word[1:].isalpha()]
    words = words[first:]
    chain = [":", *words[:8], *MARKUP, *words[8:24], "</s>"]
    ids = tokenizer.convert_tokens_to_ids(chain)
    assert len(set(ids)) == len(ids)
    with torch.no_grad():
        embedding = model.language_model.get_input_embeddings().weight.mul_(50)
        head = model.language_model.get_output_embeddings().weight.zero_()
        head[ids[1:]] = embedding[ids[:-1]]
    return tokenizer.decode(ids[1:-1]).strip()


def patient_client(url: str) -> Client:
    """A visitor without a browser. Its own patience is 5 s, too little on a busy machine."""
    patience = {"timeout": 120}
    return Client(url, httpx_kwargs=patience, verbose=False, analytics_enabled=False, download_files=False)


def start(root: Path, *words: str) -> subprocess.Popen:
    (root / "uploads").mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "GRADIO_TEMP_DIR": str(root / "uploads")}
    return subprocess.Popen(
        [sys.executable, *words], cwd=root, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def calls(root: Path) -> list[dict]:
    """What the generator was asked."""
    return [one for one in log(root) if "question" in one]


def log(root: Path) -> list[dict]:
    return [json.loads(line) for line in (root / "calls.jsonl").read_text().splitlines()]
