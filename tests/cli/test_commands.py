"""The command line, in process: help that helps, one line for a mistake, answers that reach the screen."""

import io
import json
import re
import shutil

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from mmchat.cli.main import COMMANDS, build_commands, main, parse
from mmchat.command_line.errors import reporting
from mmchat.data.sources import open_source
from mmchat.errors import SharedError, UserError
from mmchat.images import load_image
from mmchat.inference import Generator


@pytest.fixture
def image(tmp_path, make_image):
    path = tmp_path / "image.png"
    make_image().save(path)
    return path


PARSERS = build_commands()


@pytest.mark.parametrize("name", [*PARSERS, "train"])
def test_help(run, name):
    status, out, err = run(*name.split(), "--help")
    assert (status, err) == (0, "")
    assert out.startswith("usage: ")
    assert f"mmchat {name}" in out
    assert "example:" in out


@pytest.mark.parametrize("name", PARSERS)
def test_every_option_says_what_it_does_and_its_default(run, name):
    help_text = " ".join(run(*name.split(), "--help")[1].split())
    for action in PARSERS[name]._actions:
        assert action.help, f"{name} {action.dest}"
        if action.option_strings and action.default not in (None, False, [], "==SUPPRESS=="):
            assert f"(default: {action.default})" in help_text, f"{name} {action.option_strings[0]}"
    assert "default: ==SUPPRESS==" not in help_text


@pytest.mark.parametrize("name", PARSERS)
def test_examples_are_accepted(name):
    """The arguments of each example fit its own parser."""
    example = PARSERS[name].epilog.rpartition("example:\n  ")[2].removeprefix(f"mmchat {name}")
    arguments = [quoted or word for quoted, word in re.findall(r'"([^"]*)"|(\S+)', example)]
    parse(PARSERS[name], arguments)


def test_help_of_all(run):
    status, out, _ = run("--help")
    assert status == 0
    for name in COMMANDS:
        assert re.search(rf"^  {name} +\w", out, re.MULTILINE)
    status, out, _ = run()
    assert status == 2
    assert "usage: mmchat COMMAND" in out


@pytest.mark.parametrize("group", ["data", "clip", "clip search", "vision", "recipe"])
def test_the_first_words_of_commands_list_them(run, group):
    listed = [name for name in COMMANDS if name.startswith(f"{group} ")]
    status, out, err = run(*group.split(), "--help")
    assert (status, err) == (0, "")
    assert [line[2:].split("  ")[0] for line in out.splitlines() if line.startswith("  ")] == listed
    assert run(*group.split()) == (2, out, "")


def test_the_lists_of_commands_fit_80_columns(run):
    assert max(map(len, run("--help")[1].splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("chatt x", "there is no command 'chatt'; the nearest is 'chat'"),
        ("trian x", "the nearest is 'train'"),
        ("wibble x", "error: there is no command 'wibble' (see `mmchat --help`)"),
        ("clip prob x", "there is no command 'clip prob'; the nearest is 'clip probe' (see `mmchat clip --help`)"),
        ("data wibble", "error: there is no command 'data wibble' (see `mmchat data --help`)"),
        ("chat", "the following arguments are required: MODEL"),
        ("chat x --temperatur 1 --nonsense", "unrecognized arguments: --nonsense"),
        ("chat x --max-new-tokens many", "argument --max-new-tokens: expected a number from 1 on, found 'many'"),
        ("chat x y --image nowhere.png", "image nowhere.png does not exist"),
        ("chat nowhere y", "model directory nowhere does not exist"),
        ("caption x", "the following arguments are required: --out"),
        ("caption x nowhere --out y.jsonl", "nowhere does not exist; expected an image file or a folder of images"),
        ("init --language x --out y", "the following arguments are required: --vision"),
        ("init --language x --vision nowhere/at/all --out fresh", "vision tower 'nowhere/at/all' does not exist"),
        ("init --language x --vision y --fusion z --out w", "argument --fusion: invalid choice: 'z'"),
        ("eval nowhere nowhere.json", "data file nowhere.json does not exist"),
        ("merge nowhere --out y", "adapter nowhere does not exist"),
        ("serve nowhere", "model directory nowhere does not exist"),
        ("serve . --host 0.0.0.0", "--host 0.0.0.0 can be reached from other machines, which needs API keys"),
        ("serve . --api-key-file keys", "API key file keys cannot be read"),
        ("serve . --rate 0", "argument --rate: expected a number from 0.001 on, found '0'"),
        ("train x --ranks", "argument --ranks: expected one argument (see `mmchat train --help`)"),
        ("train x --ranks 0", "argument --ranks: expected a number from 1 on, found '0'"),
    ],
)
def test_a_mistake_is_one_line_and_status_two(run, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    hosts = []
    monkeypatch.setattr("socket.getaddrinfo", lambda host, *rest, **options: hosts.append(host) or [])
    status, out, err = run(*arguments.split())
    assert status == 2
    assert out == ""
    assert not hosts  # nothing is looked up on the network
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_defect_keeps_its_traceback(monkeypatch, assistant_dir):
    def broken(*args, **kwargs):
        raise KeyError("a bug")

    monkeypatch.setattr("mmchat.inference.generator.load_assistant", broken)
    with pytest.raises(KeyError):
        main(["chat", str(assistant_dir), "What?"])


@pytest.mark.parametrize(
    ("rank", "kind", "said"),
    [
        (0, SharedError, "error: x\n"),
        (1, SharedError, ""),
        (0, UserError, "error: x\n"),
        (1, UserError, "[rank 1] error: x\n"),
    ],
)
def test_what_all_ranks_know_is_said_by_the_first(monkeypatch, capsys, rank, kind, said):
    for waits in ("OTHER_RANKS_WAIT", "RANK_0_PRINTS"):
        monkeypatch.setattr(f"mmchat.command_line.errors.{waits}", 0)
    with pytest.raises(SystemExit, match="2"), reporting(rank):
        raise kind("x")
    assert capsys.readouterr().err == said


def test_ctrl_c(run, monkeypatch, assistant_dir):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("mmchat.inference.generator.load_assistant", stop)
    assert run("chat", assistant_dir, "y")[::2] == (130, "interrupted\n")


@pytest.mark.parametrize(
    "order", ["{ckpt} {q} --image {i} {n}", "{ckpt} --image {i} {n} {q}", "--image {i} {n} {ckpt} {q}"]
)
def test_chat_answers_one_question(run, assistant_dir, image, order):
    line = order.format(ckpt=assistant_dir, q="QUESTION", i=image, n="--max-new-tokens 6")
    arguments = ["chat", *("What is this?" if word == "QUESTION" else word for word in line.split())]
    status, out, err = run(*arguments)
    expected = Generator(assistant_dir).chat("What is this?", image, max_new_tokens=6)
    assert (status, err) == (0, "[cut off at 6 tokens; --max-new-tokens sets the limit]\n")
    assert out.strip() == expected


@pytest.fixture
def chat_in_terminal(run, assistant_dir, monkeypatch):
    """chat_in_terminal(*lines): what the model was asked (messages and number of images), and stderr."""

    def chat(*typed):
        asked = []
        original = Generator.submit

        def submit(self, messages, images=(), **options):
            asked.append((messages, len(images)))
            return original(self, messages, images, **options)

        monkeypatch.setattr(Generator, "submit", submit)
        monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(map(str, typed)) + "\n"))
        status, _, err = run("chat", assistant_dir, "--max-new-tokens", "3")
        monkeypatch.undo()
        assert status == 0
        return asked, err

    return chat


def test_chat_with_weights_of_nan_says_so(run, assistant_dir, tmp_path):
    damaged = shutil.copytree(assistant_dir, tmp_path / "model")
    weights = load_file(damaged / "model.safetensors")
    weights["language_model.lm_head.weight"][3] = torch.nan
    save_file(weights, damaged / "model.safetensors", metadata={"format": "pt"})
    status, out, err = run("chat", damaged, "What?", "--max-new-tokens", 3)
    assert (status, out.strip()) == (2, "") and "error: the model computes NaN" in err and "Traceback" not in err


def test_chat_remembers_the_conversation(chat_in_terminal, image):
    asked, err = chat_in_terminal(
        f"/image {image}", "What?", "", "And now?", "/image nowhere.png", "/new", "Hello", "exit", "never asked"
    )
    roles = [([message["role"] for message in messages], images) for messages, images in asked]
    assert roles == [(["user"], 1), (["user", "assistant", "user"], 1), (["user"], 0)]
    assert (
        f"The next question is about {image}." in err
        and "image nowhere.png does not exist" in err
        and err.count("cut off at 3 tokens") == 3
    )


def test_chat_commands(chat_in_terminal, image, tmp_path):
    saved = tmp_path / "talk.json"
    asked, err = chat_in_terminal(
        *("/undo", "/help", "/unknown", "/save x.json", "/system Be kind.", f"/image {image}", "First?"),
        *(f"/image {image}", "Second?", f"/image {image}", "/undo", "Third?", "/save talk", f"/save {saved}"),
        *("What is <image>?", f"/save {tmp_path / 'other.json'}", "quit"),
    )
    assert [images for _, images in asked] == [1, 2, 2, 2]
    third = [message["content"] for message in asked[2][0]]
    assert third[0] == "Be kind." and len(third) == 4 and len(third[3]) == 2
    for said in (
        "nothing to take back",
        "/system TEXT",
        "no command /unknown",
        "nothing to save",
        "Taken back: Second?",
    ):
        assert said in err
    assert "/save needs the name of a .json file, found talk" in err and "holds the text <image>" in err
    (record,) = open_source(saved, tmp_path)
    assert [turn.role for turn in record.turns] == ["system", *["user", "assistant"] * 2]
    assert len(record.images) == 2 and record.images[1].open().size == load_image(image).size
    assert not (tmp_path / "other.json").exists()


def test_caption_command_does_only_what_is_missing(run, assistant_dir, tmp_path, make_image):
    folder, out_file = tmp_path / "images", tmp_path / "captions.jsonl"
    folder.mkdir()
    for number in range(2):
        make_image(number).save(folder / f"{number}.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    arguments = ["caption", assistant_dir, folder, "--out", out_file, "--max-new-tokens", 4, "--batch-size", 2]
    status, out, _ = run(*arguments)
    assert status == 0
    first, speed, following = out.splitlines()
    assert first == f"2 captioned, 1 could not be read, 0 were done before: {out_file}"
    assert re.fullmatch(r"[\d.,]+ images/s, [\d,]+ tokens/s", speed)
    assert following.startswith("next: the same command tries again")
    lines = {line["path"]: line for line in map(json.loads, out_file.read_text().split("\n")[:-1])}
    expected = Generator(assistant_dir).caption([folder / "0.png", folder / "1.png"], max_new_tokens=4)
    assert [lines[str(folder / f"{n}.png")]["caption"] for n in range(2)] == expected
    assert "error" in lines[str(folder / "broken.jpg")]
    again = run(*arguments)[1]
    assert again.startswith(f"0 captioned, 1 could not be read, 2 were done before: {out_file}\nnext: the same")


def test_caption_command_with_records(run, assistant_dir, tmp_path, make_image):
    make_image().save(tmp_path / "a.png")
    records = [{"image": "a.png", "title": title, "id": number} for number, title in enumerate(("a cat", "a dog"))]
    (tmp_path / "photos.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    table = tmp_path / "captions.parquet"
    options = ["--out", table, "--prompt", "What is {title}?", "--keep", "id", "--sidecar-dir", tmp_path / "texts"]
    arguments = ["caption", assistant_dir, tmp_path / "photos.jsonl", "--max-new-tokens", 4, *options]
    status, out, _ = run(*arguments)
    assert (status, out.splitlines()[0]) == (0, f"2 captioned, 0 could not be read, 0 were done before: {table}")
    with Generator(assistant_dir) as generator:
        asked = [generator.chat(f"What is {one['title']}?", tmp_path / "a.png", max_new_tokens=4) for one in records]
    rows = sorted(pq.read_table(table).to_pylist(), key=lambda row: row["id"])
    assert rows == [
        {"path": f"{tmp_path}/photos.jsonl:{n + 1}", "id": str(n), "caption": asked[n], "error": None} for n in (0, 1)
    ]
    assert [(tmp_path / "texts" / "photos" / f"{n + 1}.txt").read_text() for n in (0, 1)] == [f"{a}\n" for a in asked]
    options[3] = "What is {name}?"
    status, _, err = run(*arguments[:5], *options, "--overwrite")
    found = "it has image, title, id, path"
    assert (status, err.splitlines()[-1]) == (
        2,
        f"error: {tmp_path}/photos.jsonl:1 has no 'name', which the prompt names; {found}",
    )


def test_init_writes_a_directory_that_chats(run, language_json, data_dir, tmp_path, image):
    arguments = [
        "init",
        "--language",
        language_json("llama"),
        "--vision",
        data_dir / "clip_vit_tiny_hf4",
        "--layer",
        "-2",
    ]
    arguments += ["--tokenizer", data_dir / "tokenizers" / "llama_like_legacy_false", "--out", tmp_path / "model"]
    status, out, err = run(*arguments)
    assert (status, err) == (0, "")
    assert re.search(rf"^{tmp_path}/model: [\d,]+ parameters, 16 slots per image\b", out, re.M)
    assert out.startswith("template vicuna_v1: ")
    assert run("chat", tmp_path / "model", "What?", "--image", image, "--max-new-tokens", 2)[0] == 0
    assert json.loads((tmp_path / "model" / "config.json").read_text())["towers"][0]["layer"] == -2
    # An existing directory is not overwritten; a language model without weights needs a tokenizer.
    status, _, err = run(*arguments)
    assert (status, err) == (2, f"error: {tmp_path}/model exists and is not empty; remove it or name another --out\n")
    status, _, err = run(*arguments[:7], "--out", tmp_path / "other")
    assert status == 2
    assert "is a config without a tokenizer; name one with --tokenizer" in err


def test_init_with_tiles(run, language_json, data_dir, tmp_path, make_image):
    arguments = ["init", "--language", language_json("llama"), "--vision", data_dir / "clip_vit_tiny_hf4"]
    arguments += ["--tokenizer", data_dir / "tokenizers" / "llama_like_legacy_false", "--out", tmp_path / "model"]
    status, _, err = run(*arguments, "--max-tiles", 3)
    assert (status, err) == (2, "error: --max-tiles belongs to --fit tiles or anyres\n")
    status, _, err = run(*arguments, "--fit", "tiles", "--max-tiles", 0)
    assert status == 2 and "expected 1 <= min_tiles <= max_tiles" in err
    status, out, err = run(*arguments, "--fit", "tiles", "--max-tiles", 3)
    assert (status, err) == (0, "")
    assert re.search(rf"^{tmp_path}/model: [\d,]+ parameters, 16 slots per tile\b", out, re.M)
    preprocessing = json.loads((tmp_path / "model" / "config.json").read_text())["towers"][0]["preprocessing"]
    assert preprocessing["fit"] == "tiles"
    assert preprocessing["tiling"] == {"min_tiles": 1, "max_tiles": 3, "thumbnail": True}
    make_image(width=90, height=30).save(tmp_path / "wide.png")
    arguments = ["chat", tmp_path / "model", "What?", "--image", tmp_path / "wide.png", "--max-new-tokens", 2]
    assert run(*arguments)[0] == 0


@pytest.mark.parametrize(
    ("words", "said", "expected"),
    [
        (["--fit", "anyres"], "16 features per tile", {"max_tiles": None, "one_view_if_several": False}),
        (["--fit", "anyres", "--max-tiles", 2], "16 features per tile", {"max_tiles": 2, "one_view_if_several": True}),
        (["--fit", "split", "--longest-edge", 60], "16 slots per tile", {"longest_edge": 60, "rule": "idefics3"}),
    ],
    ids=["next", "onevision", "split"],
)
def test_init_with_anyres_and_split(words, said, expected, run, language_json, data_dir, tmp_path, make_image):
    arguments = ["init", "--language", language_json("llama"), "--vision", data_dir / "clip_vit_tiny_hf4"]
    arguments += ["--tokenizer", data_dir / "tokenizers" / "llama_like_legacy_false", "--out", tmp_path / "model"]
    status, _, err = run(*arguments, "--fit", "tiles", "--longest-edge", 60)
    assert (status, err) == (2, "error: --longest-edge belongs to --fit split\n")
    status, out, err = run(*arguments, *words)
    assert (status, err) == (0, "") and re.search(rf"parameters, {said}\b", out)
    preprocessing = json.loads((tmp_path / "model" / "config.json").read_text())["towers"][0]["preprocessing"]
    assert preprocessing["fit"] == words[1] and preprocessing["tiling"].items() >= expected.items()
    added = json.loads((tmp_path / "model" / "tokenizer.json").read_text())["added_tokens"]
    assert ("<row_3_col_3>" in [token["content"] for token in added]) == (words[1] == "split")
    make_image(width=90, height=30).save(tmp_path / "wide.png")
    arguments = ["chat", tmp_path / "model", "What?", "--image", tmp_path / "wide.png", "--max-new-tokens", 2]
    assert run(*arguments)[0] == 0


def test_clip_init(run, make_tower, data_dir, tmp_path):
    (tmp_path / "tower.json").write_text(json.dumps(make_tower().config.to_dict()))
    (tmp_path / "text.json").write_text('{"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}')
    arguments = ["clip", "init", "--vision", tmp_path / "tower.json", "--text", tmp_path / "text.json", "--pool", "max"]
    arguments += [
        "--tokenizer",
        data_dir / "tokenizers" / "opt_like",
        "--projection-dim",
        8,
        "--out",
        tmp_path / "clip",
    ]
    status, out, err = run(*arguments)
    assert (status, err) == (0, "")
    assert out.endswith("parameters, pool max\n")
    from mmchat.contrastive import load_clip

    assert load_clip(tmp_path / "clip").config.projection_dim == 8
    with pytest.raises(UserError, match="holds a model of type 'mmchat_clip', expected an assistant"):
        Generator(tmp_path / "clip")
