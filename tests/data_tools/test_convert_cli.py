"""The command line: help that shows every kind, and one clear line for a mistake."""

import subprocess
import sys
from pathlib import Path

import convert
import pytest

from mmchat.command_line.errors import reporting

DATA = Path(__file__).parents[1] / "fixtures" / "convert"
GQA, CHARTQA, COCO = "train_balanced_questions.json", "chartqa_train_human.json", "captions_train2017.json"


@pytest.fixture
def refused(tmp_path, capsys):
    """refused(*argv): the line on stderr of a command that fails with exit status 2."""

    def run(*argv):
        with pytest.raises(SystemExit) as caught, reporting():
            convert.main([str(argument) for argument in argv])
        assert caught.value.code == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("converting ")]
        assert len(lines) == 1
        return lines[0]

    return run


def test_help_shows_every_kind(capsys):
    with pytest.raises(SystemExit) as caught:
        convert.main(["--help"])
    assert caught.value.code == 0
    said = capsys.readouterr().out
    for name, kind in convert.KINDS.items():
        assert f"  {name} " in said and kind.wants in said and f"e.g. {name} {kind.example}" in said


def test_wrong_arguments(refused, tmp_path):
    out = tmp_path / "o.jsonl"
    message = "error: there is no kind 'VQA_v2'; the closest is 'vqav2' (see `convert.py --help`)"
    assert refused("VQA_v2", "--input", "a", "--out", out) == message
    assert "the following arguments are required: --out (see `convert.py gqa --help`)" in refused("gqa", "--input", "a")
    assert "the following arguments are required: KIND" in refused()
    assert "unrecognized arguments: --max-turns" in refused("csv", "--input", "a", "--out", out, "--max-turns", "3")
    assert "expected a name that ends in .jsonl" in refused("gqa", "--input", DATA / GQA, "--out", tmp_path / "o.json")
    assert "--max-turns 0" in refused("gqa", "--input", DATA / GQA, "--out", out, "--max-turns", "0")
    assert "is not a folder" in refused("gqa", "--input", DATA / GQA, "--out", out, "--image-root", DATA / GQA)
    assert "needs two files" in refused("vqav2", "--input", DATA / GQA, "--out", out)
    assert not list(tmp_path.iterdir())


WRONG_FILES = [
    ("gqa", None, "does not exist"),
    ("gqa", "folder", "is a folder, expected a JSON file"),
    ("gqa", b"", "is not JSON: it starts with b''"),
    ("gqa", b"PK\x03\x04", "is not JSON: it starts with b'PK"),
    ("gqa", b"{}", "is an empty object"),
    ("gqa", CHARTQA, "has another layout: expected an object, found an array"),
    ("chartqa", GQA, "expected an array of items, found an object with the keys 07333408, 07333409, 15736264"),
    ("chartqa", b"[]", "is an empty array"),
    ("textvqa", COCO, 'no items under "data": an object with the keys info, licenses, images, annotations'),
    ("coco_captions", b'{"images": [], "annotations": []}', 'has no items under "images"'),
    ("llava_instruct", b'[{"id": "1"},', "invalid JSON before byte 13"),
    ("llava_instruct", b'[{"id": "\xff"}]', "invalid JSON before byte"),
    ("csv", b"image\n1.jpg\n", "the first line must name two columns or more, found ['image']"),
    ("csv", b"image,words\n1.jpg,a\n", "no column caption, captions, text, title, description among id, image, words"),
    ("csv", b"image,caption\n", "has a header but no rows"),
    ("csv", b"image,caption\n1.jpg,caf\xe9\n", "is not UTF-8 text"),
    ("csv", b'image,caption\n1.jpg,"' + b"x" * 1_100_000, "is a quotation mark not closed?"),
]


@pytest.mark.parametrize(("kind", "content", "said"), WRONG_FILES, ids=[w[2][:30] for w in WRONG_FILES])
def test_wrong_files(refused, tmp_path, kind, content, said):
    path = tmp_path / "in" / "input.json"
    path.parent.mkdir()
    if content == "folder":
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        path = DATA / content
    assert said in refused(kind, "--input", path, "--out", tmp_path / "o.jsonl")
    assert not list(tmp_path.glob("o.*"))


def test_vqav2_files_in_the_wrong_order(refused, tmp_path):
    files = sorted(DATA.glob("v2_*"), reverse=True)
    assert files[0].name == "v2_mscoco_train2014_annotations.json"
    said = refused("vqav2", "--input", *files, "--out", tmp_path / "o.jsonl")
    assert 'v2_OpenEnded_mscoco_train2014_questions.json has no items under "annotations"' in said


def test_a_byte_order_mark_is_accepted(tmp_path):
    (tmp_path / "in.json").write_bytes(b"\xef\xbb\xbf" + (DATA / CHARTQA).read_bytes())
    convert.main(["chartqa", "--input", str(tmp_path / "in.json"), "--out", str(tmp_path / "o.jsonl")])
    assert (tmp_path / "o.jsonl").read_bytes().count(b"\n") == 2


def test_summary_of_a_real_run(tmp_path):
    root = tmp_path / "my images"
    root.mkdir()
    for name in ("00453/004539375.jpg", "00223/002239345.jpg", "00511/missing.jpg"):
        (root / name).parent.mkdir()
        (root / name).touch()
    words = ["llava_pretrain", "--input", DATA / "blip_laion_cc_sbu_558k.json", "--out", tmp_path / "o.jsonl"]
    words += ["--image-root", root]
    done = subprocess.run([sys.executable, convert.__file__, *words], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        f"3 records in {tmp_path}/o.jsonl; 1 items left out, listed in {tmp_path}/o.jsonl.skipped",
        "  1  empty answer, e.g. blip_laion_cc_sbu_558k.json item 3 (005947502)",
        f"next: mmchat data check {tmp_path}/o.jsonl --image-root '{root}'",
    ]
    assert "converting llava_pretrain, MB: 1/1" in done.stderr
