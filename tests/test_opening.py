"""Damaged and hostile model directories: one message that names the file, in bounded time and memory."""

import json
import shutil
import time

import pytest
import torch
from torch import nn

from mmchat.cli.main import main
from mmchat.errors import UserError
from mmchat.model.directory import load_assistant, load_processor
from mmchat.opening import check_sizes, opening, read_model_config, rehearse
from mmchat.vision import load_tower


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


HUGE = {
    "layers": (("text_config", "num_hidden_layers"), 10**9, "expected a whole number from 1 to 10,000"),
    "many layers": (("text_config", "num_hidden_layers"), 9999, "describes a model of at least [0-9,]+ modules"),
    "width": (("text_config", "intermediate_size"), 10**8, "describes a model of at least [0-9,]+ parameters"),
    "vocabulary": (("text_config", "vocab_size"), 2 * 10**9, "describes a model of at least [0-9,]+ parameters"),
    "positions": (("towers", 0, "backbone", "image_size"), 7_000, "describes a model of at least [0-9,]+ parameters"),
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


def test_a_processor_of_another_model_is_refused(copied):
    change(copied / "processor_config.json", ("image_tokens",), 4)
    with pytest.raises(UserError, match=r"the processor in .* does not fit its model"):
        load_assistant(copied)


def test_code_beside_the_tokenizer_is_neither_run_nor_asked_about(copied, tmp_path, monkeypatch):
    (copied / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    change(copied / "tokenizer_config.json", ("auto_map",), {"AutoTokenizer": ["own.Own", "own.Own"]})
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    try:
        load_processor(copied)
    except UserError:
        pass
    assert not (tmp_path / "ran").exists()


def test_other_errors_inside_become_one_message(tmp_path):
    class PanicException(BaseException):  # what extensions in Rust raise
        pass

    for error in (KeyError("x"), MemoryError(), RecursionError(), PanicException("called `unwrap()`")):
        with pytest.raises(UserError, match=f"{tmp_path} cannot be opened: .*{type(error).__name__}"), opening(tmp_path):
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
        rehearse(lambda: nn.Parameter(torch.empty(1)) and nn.Linear(10**6, 10**6), tmp_path, held=1000)
    rehearse(lambda: nn.Linear(100, 100), tmp_path, held=1000)
