"""Damaged and hostile model directories, opened by every command that takes one."""

import json
import os
import pickle
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, CLIPModel, LlavaConfig, LlavaForConditionalGeneration

from mmchat.cli.main import main
from mmchat.cli.plan import EXIT_CANNOT_RUN
from mmchat.contrastive.directory import init_clip, load_clip
from mmchat.model.assembly import assemble
from mmchat.model.directory import load_assistant, save_assistant
from mmchat.model.lora_adapter import LoraShape, add_adapter, save_adapter
from mmchat.training.build_model import build_model
from mmchat.training.config import load_run_config
from mmchat.vision import TowerConfig, build_tower, load_tower
from mmchat.vision.classifier import init_classifier
from mmchat.vision.directory import save_tower
from tests.clip_kinds import TEXT
from tests.conftest import CLIP_28, DATA, LANGUAGE, TOKENIZER_OF
from tests.conversion.hf_models import (
    CLIP_PROCESSOR,
    LLAVA_JINJA,
    open_tokenizer,
    rename_keys,
    save_source,
    text_config,
    tower_config,
)
from tests.fuzzing.damage import damaged_bytes, damaged_json
from tests.launching import write_config
from tests.training_fixtures import run_values, write_records

TOKENIZER = str(DATA / "tokenizers" / TOKENIZER_OF["llama"])
LOOPS = "{% for a in range(99999) %}" * 2 + "{% endfor %}" * 2
JINJAS = (
    LOOPS,
    "{{ 1 / 0 }}",
    "{{ 'a' * 99000000000 }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{{ messages | tojson | center(9999999999) }}",
    "{% if %}",
    "{{ messages.nothing.at.all }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "",
    "((((" * 2000,
)
CODE = "import pathlib; pathlib.Path({path!r}).write_text('executed')"


class Command(NamedTuple):
    """What opens a kind of directory: the damaged one and a folder for output -> runs it."""

    name: str
    run: Callable[[Path, Path], object]


class Pickled:
    """Its unpickling writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return exec, (CODE.format(path=self.path),)


def directory_case(seed: int, folder: Path) -> Callable[[int], str]:
    """Damages one file of a sound directory and runs one command on it. Code in it must not run."""
    sound = SoundDirectories(folder / "sound")
    executed = folder / "executed"

    def case(number: int) -> str:
        draw = random.Random(f"directory {seed} {number}")
        kind = draw.choice(list(sound.commands))
        place, out = folder / "case" / kind, folder / "case" / "out"
        shutil.rmtree(folder / "case", ignore_errors=True)
        shutil.copytree(sound.path / kind, place)
        what = damage_directory(place, draw, executed)
        command = draw.choice(sound.commands[kind])
        try:
            command.run(place, out)
        except BaseException as error:
            error.add_note(f"{kind}: {what}: {command.name}")
            raise
        finally:
            assert not executed.exists(), f"code of {kind} was executed: {what}: {command.name}"
        return ""

    return case


def damage_directory(place: Path, draw: random.Random, executed: Path) -> str:
    """Damage one file; says which and how."""
    files = sorted(path for path in place.rglob("*") if path.is_file() and path.name != "README.md")
    how = draw.random()
    if how < 0.05:
        return _with_code(place, draw, executed)
    if how < 0.12:
        return _with_jinja(place, draw)
    if how < 0.17:
        return _as_pickle(place, draw, executed)
    path = draw.choice([file for file in files if file.suffix == ".json"] if how < 0.75 else files)
    if how > 0.95:
        return _replaced_file(path, draw)
    data = path.read_bytes()
    if path.suffix == ".json":
        path.write_bytes(damaged_json(data, draw))
    elif path.suffix == ".safetensors":
        path.write_bytes(_damaged_safetensors(data, draw))
    else:
        path.write_bytes(damaged_bytes(data, draw))
    return f"{path.name} changed"


def _replaced_file(path: Path, draw: random.Random) -> str:
    path.unlink()
    how = draw.choice(("missing", "folder", "link to itself", "link to nowhere", "empty", "pipe"))
    if how == "folder":
        path.mkdir()
    elif how == "pipe":
        os.mkfifo(path)
    elif how.startswith("link"):
        path.symlink_to(path if how == "link to itself" else path.with_name("nowhere"))
    elif how == "empty":
        path.touch()
    return f"{path.name} {how}"


def _with_code(place: Path, draw: random.Random, executed: Path) -> str:
    """Modules that config files name, as checkpoints with code of their own have them."""
    (place / "own.py").write_text(CODE.format(path=str(executed)) + "\nclass Own: pass\n")
    names = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")
    path = draw.choice([place / name for name in names if (place / name).exists()] or [place / "config.json"])
    values = json.loads(path.read_text()) if path.exists() else {}
    classes = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoProcessor", "AutoImageProcessor")
    values["auto_map"] = dict.fromkeys(classes, "own.Own") | {"AutoTokenizer": ["own.Own", "own.Own"]}
    if draw.random() < 0.5:
        values |= draw.choice(({"model_type": "own"}, {"tokenizer_class": "Own"}, {"processor_class": "Own"}))
    values["trust_remote_code"] = True
    path.write_text(json.dumps(values))
    return f"{path.name} with code"


def _with_jinja(place: Path, draw: random.Random) -> str:
    jinja, values = draw.choice(JINJAS), place / "tokenizer_config.json"
    if (place / "chat_template.jinja").exists() or draw.random() < 0.5 or not values.exists():
        (place / "chat_template.jinja").write_text(jinja)
    else:
        values.write_text(json.dumps(json.loads(values.read_text()) | {"chat_template": jinja}))
    config = place / "config.json"
    if draw.random() < 0.5 and config.exists():
        stated = json.loads(config.read_text())
        config.write_text(json.dumps(stated | {"template": "auto"} if "template" in stated else stated))
        processor = place / "processor_config.json"
        if "template" in stated and processor.exists():
            processor.write_text(json.dumps(json.loads(processor.read_text()) | {"template": "auto"}))
    return f"chat template {jinja[:40]!r}"


def _as_pickle(place: Path, draw: random.Random, executed: Path) -> str:
    """The weights as a pickle that writes a file, beside or instead of the safetensors."""
    weights = next(iter(sorted(place.glob("*.safetensors"))))
    state = load_file(weights)
    if draw.random() < 0.8:
        weights.unlink()
    path = place / draw.choice(("pytorch_model.bin", "model.bin", "model.pt", "training_args.bin"))
    how = draw.choice(("pickle", "torch", "torch old", "many GB"))
    if how == "pickle":
        path.write_bytes(pickle.dumps({"model": Pickled(executed)}))
    elif how == "many GB":
        huge = torch.zeros(1).expand(2**40)
        state[next(iter(state))] = huge
        torch.save({key: value if value is huge else value[:0] for key, value in state.items()}, path)
    else:
        torch.save(state | {"own": Pickled(executed)}, path, _use_new_zipfile_serialization=how == "torch")
    return f"{path.name}: {how}"


def _damaged_safetensors(data: bytes, draw: random.Random) -> bytes:
    """Damaged in its header as JSON, in the length of the header, or anywhere."""
    (length,) = struct.unpack("<Q", data[:8])
    how = draw.random()
    if how < 0.5:
        header = damaged_json(data[8 : 8 + length], draw)
        return struct.pack("<Q", len(header)) + header + data[8 + length :]
    if how < 0.6:
        return struct.pack("<Q", draw.choice((0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1))) + data[8:]
    return damaged_bytes(data, draw)


def _plan(config: Path, place: Path) -> None:
    try:
        main(["plan", str(config), "--model", str(place)])
    except SystemExit as stopped:
        if stopped.code != EXIT_CANNOT_RUN:
            raise


class SoundDirectories:
    """One tiny directory of each kind below `path`, and the commands that open it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True)
        torch.manual_seed(0)
        self.image = path / "image.png"
        Image.new("RGB", (30, 22), "red").save(self.image)
        records = write_records(path / "records", 3, images=1)
        self._write_assistants()
        self._write_foreign()
        self._write_towers()
        config = write_config(path / "run.yaml", **run_values(path, path / "assistant", records))
        self.commands = self._commands(config, records)

    def _tower(self):
        return build_tower(TowerConfig(family="clip_vit", backbone=CLIP_28, layer=-2))

    def _write_assistants(self) -> None:
        language = self.path / "language.json"
        language.write_text(json.dumps({"model_type": "llama", **LANGUAGE["llama"]}))
        arguments = (str(language), [self._tower()], "mlp2x_gelu", "vicuna_v1")
        save_assistant(*assemble(*arguments, tokenizer=TOKENIZER), self.path / "assistant")
        model, processor = load_assistant(self.path / "assistant")
        layers = {"language_model.model.layers.0.self_attn.q_proj": LoraShape(2, 4)}
        adapter = add_adapter(model, layers, 0.0)
        save_adapter(adapter, processor, self.path / "adapter", self.path / "assistant")

    def _write_foreign(self) -> None:
        tokenizer = open_tokenizer("llama", "<image>")
        config = LlavaConfig(
            vision_config=tower_config("clip"),
            text_config=text_config("llama", tokenizer),
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            vision_feature_select_strategy="default",
        )
        model = LlavaForConditionalGeneration(config)
        save_source(model, tokenizer, self.path / "llava", LLAVA_JINJA, CLIP_PROCESSOR)
        rename_keys(self.path / "llava", lambda key: key.replace("vision_tower.", "vision_tower.vision_model."))
        tokenizer = open_tokenizer("llama")
        language = AutoModelForCausalLM.from_config(text_config("llama", tokenizer))
        save_source(language, tokenizer, self.path / "language", LLAVA_JINJA, {})
        (self.path / "language" / "preprocessor_config.json").unlink()

    def _write_towers(self) -> None:
        save_tower(self._tower(), self.path / "tower")
        init_clip(self._tower(), TEXT, TOKENIZER, 16, "pooled", self.path / "clip")
        init_classifier(self._tower(), ["a", "b"], "mean", self.path / "classifier")
        config = CLIPModel.config_class(
            vision_config={key: value for key, value in CLIP_28.items() if key != "projection_dim"},
            text_config={**TEXT, "vocab_size": 99, "bos_token_id": 97, "eos_token_id": 98},
            projection_dim=16,
        )
        CLIPModel(config).save_pretrained(self.path / "hf_clip")
        (self.path / "hf_clip" / "preprocessor_config.json").write_text(json.dumps(CLIP_PROCESSOR))

    def _commands(self, config: Path, records: Path) -> dict[str, list[Command]]:
        image, tower = str(self.image), str(self.path / "tower")

        def line(*words) -> Command:
            """A command line; DIR and OUT stand for the directory and the output."""
            return Command(
                " ".join(map(str, words[:2])),
                lambda place, out: main([str({"DIR": place, "OUT": out}.get(word, word)) for word in words]),
            )

        def build(place: Path, out: Path) -> None:
            build_model(load_run_config(config, ["--model", str(place)]))

        inspect = line("vision", "inspect", "DIR")
        as_language = line("init", "--language", "DIR", "--vision", tower, "--out", "OUT")
        language = ("--language", self.path / "language")
        as_tower = line("init", *language, "--vision", "DIR", "--out", "OUT")
        return {
            "assistant": [
                line("chat", "DIR", "why?", "--image", image, "--max-new-tokens", 3),
                line("caption", "DIR", image, "--out", self.path / "captions.jsonl", "--overwrite"),
                line("eval", "DIR", records, "--max-new-tokens", 3),
                line("export", "DIR", "--to", "hf", "--out", "OUT"),
                line("export", "DIR", "--to", "gguf", "--out", "OUT"),
                line("resize", "DIR", "--image-size", 56, "--out", "OUT"),
                Command("plan", lambda place, out: _plan(config, place)),
                Command("train", build),
                as_language,
                inspect,
            ],
            "adapter": [line("merge", "DIR", "--base", self.path / "assistant", "--out", "OUT")],
            "llava": [line("import", "DIR", "OUT"), line("import", "DIR", "OUT"), as_language, inspect],
            "language": [
                as_language,
                as_language,
                line("init", "--language", "DIR", "--vision", tower, "--out", "OUT", "--without-weights"),
            ],
            "tower": [inspect, as_tower, Command("load_tower", lambda place, out: load_tower(place))],
            "clip": [
                line("clip", "classify", "DIR", image, "--labels", "a,b"),
                line("export", "DIR", "--to", "hf", "--out", "OUT"),
                Command("load_clip", lambda place, out: load_clip(place)),
                inspect,
            ],
            "classifier": [inspect, line("vision", "inspect", "DIR", "--image", image, "--out", "OUT")],
            "hf_clip": [
                line("clip", "convert", "DIR", "--tokenizer", TOKENIZER, "--out", "OUT"),
                as_tower,
                Command("load_tower", lambda place, out: load_tower(place)),
                Command("load_clip", lambda place, out: load_clip(place)),
            ],
        }
