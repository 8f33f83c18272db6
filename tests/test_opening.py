"""Damaged and hostile model directories: one message that names the file, in bounded time and memory."""

import json
import os
import shutil
import time
from contextlib import suppress

import pytest
from torch import nn
from transformers import AutoTokenizer

from mmchat.cli.main import main
from mmchat.errors import UserError
from mmchat.model.directory import load_assistant, load_processor
from mmchat.opening import check_sizes, opening, read_model_config, rehearse
from mmchat.pretrained import open_pretrained
from mmchat.vision import load_tower
from tests.launching import ROOT


@pytest.fixture
def copied(assistant_dir, tmp_path):
    return shutil.copytree(assistant_dir, tmp_path / "copy")


def change(path, keys, value):
    values = json.loads(path.read_text())
    inner = values
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(values))


SIZES = (0, -1, 28.5, "32", True, 10**30, [], {"height": 0})
TEXT, TOWER = ("text_config", "hidden_size"), ("towers", 0, "backbone", "patch_size")


@pytest.mark.parametrize("place", [TEXT, TOWER], ids=["language", "tower"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_impossible_sizes_are_named(place, size, copied, capsys):
    config = copied / "config.json"
    change(config, place, size)
    name = ".".join(map(str, place))
    if size == []:
        return check_sizes({"image_size": []}, config)  # a list of none says nothing
    with pytest.raises(UserError, match=rf"config\.json has {name} .*, expected a whole number from 1 to"):
        read_model_config(copied)
    for command in (["chat", str(copied), "why?"], ["vision", "inspect", str(copied)]):
        with pytest.raises(SystemExit) as stopped:
            main(command)
        assert stopped.value.code == 2
        assert capsys.readouterr().err.count("error: ") == 1


def test_a_tower_of_convolutions_alone_is_opened():
    """The quickstart's: a stem and no block above it."""
    values = json.loads((ROOT / "configs" / "quickstart" / "tower.json").read_text())
    assert values["backbone"]["num_hidden_layers"] == 0
    check_sizes({"towers": [values]}, ROOT / "config.json")
    del values["backbone"]["stem_depth"]
    with pytest.raises(UserError, match=r"towers\.0\.backbone\.num_hidden_layers 0, expected a whole number from 1"):
        check_sizes({"towers": [values]}, ROOT / "config.json")


HUGE = {
    "layers": (("text_config", "num_hidden_layers"), 10**9, "expected a whole number from 1 to 10,000"),
    "many layers": (("text_config", "num_hidden_layers"), 9999, "describes a model of at least [0-9,]+ modules"),
    "width": (("text_config", "intermediate_size"), 10**8, "describes a model of at least [0-9,]+ parameters"),
    "vocabulary": (("text_config", "vocab_size"), 2 * 10**9, "describes a model of at least [0-9,]+ parameters"),
    "labels": (("text_config", "num_labels"), 10**9, "expected a whole number from 1 to 1,000,000"),
}


@pytest.mark.parametrize("name", HUGE)
def test_models_larger_than_their_weights_are_not_built(name, copied):
    place, value, message = HUGE[name]
    change(copied / "config.json", place, value)
    started = time.process_time()
    with pytest.raises(UserError, match=message):
        load_assistant(copied)
    assert time.process_time() - started < 5


def test_a_tower_that_would_take_all_memory(tmp_path):
    path = tmp_path / "tower.json"
    backbone = {"hidden_size": 2**20, "intermediate_size": 2**20, "num_attention_heads": 16}
    path.write_text(json.dumps({"family": "clip_vit", "backbone": {**backbone, "image_size": 28, "patch_size": 7}}))
    with pytest.raises(UserError, match=r"tower\.json is not opened: .* too many for the memory of this machine"):
        load_tower(path)


DAMAGED = {
    "processor_config.json": (b"[1, 2", r"processor_config\.json is not valid JSON"),
    "tokenizer.json": (b"{", r"tokenizer\.json is not valid JSON"),
    "tokenizer_config.json": (b"9" * 5000, r"tokenizer_config\.json is not valid JSON: Exceeds the limit"),
    "generation_config.json": (b"\xff", r"generation_config\.json is not valid JSON"),
    "config.json": (b"null", r"config\.json holds a JSON NoneType"),
    "model.safetensors": (b"\xff" * 64, r"damaged or cut off"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_the_damaged_file_is_named(name, copied):
    data, message = DAMAGED[name]
    (copied / name).write_bytes(data)
    with pytest.raises(UserError, match=message):
        load_assistant(copied)


def test_a_link_to_itself(copied):
    (copied / "config.json").unlink()
    (copied / "config.json").symlink_to(copied / "config.json")
    with pytest.raises(UserError, match=r"config\.json cannot be read: Too many levels of symbolic links"):
        load_assistant(copied)


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json", "model.safetensors"])
def test_a_pipe_is_not_waited_for(name, copied):
    (copied / name).unlink()
    os.mkfifo(copied / name)
    with pytest.raises(UserError, match=rf"{name} is a pipe, expected a regular file"):
        load_assistant(copied)


def test_a_tokenizer_that_takes_all_memory_is_not_opened(copied):
    change(copied / "tokenizer.json", ("added_tokens", 0, "id"), 10**9)
    with pytest.raises(UserError, match=r"tokenizer\.json has the token id 1000000000, expected 0 to 9,999,999"):
        load_processor(copied)
    change(copied / "tokenizer.json", ("added_tokens", 0, "id"), 600_000)
    with pytest.raises(UserError, match=r"tokenizer\.json has [\d,]+ tokens, but the id 600,000"):
        load_processor(copied)
    change(copied / "tokenizer.json", ("added_tokens", 0, "id"), 0)
    replace = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000}
    change(copied / "tokenizer.json", ("normalizer",), {"type": "Sequence", "normalizers": [replace] * 3})
    with pytest.raises(UserError, match=r"tokenizer\.json replaces text by more than 1,000,000 times as much"):
        load_processor(copied)
    change(copied / "tokenizer.json", ("normalizer",), None)
    change(copied / "tokenizer.json", ("padding",), {"strategy": {"Fixed": 10**9}})
    with pytest.raises(UserError, match=r"tokenizer\.json pads every text to 1e\+09 tokens"):
        load_processor(copied)


def test_a_tokenizer_with_two_tokens_of_one_id(copied):
    """tokenizers keeps one of them, by chance."""
    path = copied / "tokenizer.json"
    merged = next("".join(one) for one in json.loads(path.read_text())["model"]["merges"])
    change(path, ("model", "vocab", merged), 1)
    with pytest.raises(UserError, match=r"tokenizer\.json gives several tokens of the vocabulary the same id"):
        load_processor(copied)


def test_half_a_character_in_a_tokenizers_config(copied):
    change(copied / "tokenizer_config.json", ("chat_template",), "\ud800")
    with pytest.raises(UserError, match=r"tokenizer_config\.json holds half a character"):
        load_processor(copied)


def test_a_tokenizer_without_tokens_is_refused(copied):
    (copied / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"has no tokens: tokenizer\.json or another file of it is missing"):
        open_pretrained(AutoTokenizer, str(copied), "tokenizer")


def test_ids_of_a_generation_config(copied):
    change(copied / "generation_config.json", ("eos_token_id",), "2")
    with pytest.raises(UserError, match=r"generation_config\.json has eos_token_id '2', expected the id of a token"):
        load_assistant(copied)


def test_a_processor_of_another_model_is_refused(copied):
    change(copied / "processor_config.json", ("image_tokens",), 4)
    with pytest.raises(UserError, match=r"the processor gives a view of an image|describes other towers"):
        load_assistant(copied)


def test_code_beside_the_tokenizer_is_neither_run_nor_asked_about(copied, tmp_path, monkeypatch):
    (copied / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    change(copied / "tokenizer_config.json", ("auto_map",), {"AutoTokenizer": ["own.Own", "own.Own"]})
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    with suppress(UserError):
        load_processor(copied)
    assert not (tmp_path / "ran").exists()


def test_other_errors_inside_become_one_message(tmp_path):
    class PanicException(BaseException):  # what extensions in Rust raise
        pass

    for error in (KeyError("x"), MemoryError(), RecursionError(), PanicException("called `unwrap()`")):
        message = f"{tmp_path} cannot be opened: .*{type(error).__name__}"
        with pytest.raises(UserError, match=message), opening(tmp_path):
            raise error
    for error in (KeyboardInterrupt(), SystemExit(0), UserError("as it is")):
        with pytest.raises(type(error)) as raised, opening(tmp_path):
            raise error
        assert raised.value is error


def test_building_elsewhere_is_not_counted(tmp_path):
    with opening(tmp_path, held=10):
        nn.Linear(10, 10)
    nn.ModuleList(nn.Linear(1, 1) for _ in range(10_000))
    with pytest.raises(UserError, match="modules and tensors"), opening(tmp_path, held=10):
        nn.ModuleList(nn.Linear(1, 1) for _ in range(10_000))


def test_a_rehearsal_takes_no_memory(tmp_path):
    with pytest.raises(UserError, match="parameters, too many for its weights, which have 1,000 bytes"):
        rehearse(lambda: nn.Linear(10**6, 10**6), tmp_path, held=1000)
    rehearse(lambda: nn.Linear(100, 100), tmp_path, held=1000)
