"""Synthetic lines: the label is what is drawn, and no held-out line is in the training split."""

import random
import re

import make_lines
import numpy as np
import pytest
from PIL import Image
from synthetic.fonts import SHIPPED, find_faces
from synthetic.label_check import DefectError
from synthetic.text_folder import normalise_text
from synthetic.text_lines import LETTERS, SHUFFLED, LineStyle, draw, letters

from mmchat.constants import OCR_PROMPT
from mmchat.data.sources import open_source
from mmchat.files import read_json_lines

WORDS = "the quick brown fox jumps over a lazy dog while wizards mix potions in every corner of it".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def faces():
    return find_faces([SHIPPED])


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    rng = random.Random(0)
    paragraphs = ["  ".join(rng.choices(WORDS, k=12)) + f" {number}." for number in range(120)]
    (folder / "tales.txt").write_text("\n\n".join(paragraphs))
    return folder


def make(folder, out, *more):
    few = ["--count", "90", "--dev", "20", "--heldout", "60", "--preview", "4", "--workers", "0"]
    make_lines.main(["--text", str(folder), "--out", str(out), *few, *more])
    return {split: read_json_lines(out / f"{split}.jsonl") for split in make_lines.SPLITS}


@pytest.fixture(scope="module")
def made(text_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("lines") / "out"
    return out, make(text_folder, out)


def test_no_line_and_no_paragraph_is_in_two_splits_and_one_family_is_held_out(made, text_folder):
    _, splits = made
    said = {name: {record["conversations"][1]["value"] for record in split} for name, split in splits.items()}
    assert not (said["heldout"] | said["dev"]) & said["train"] and not said["heldout"] & said["dev"]
    faces = {name: {family for record in split for family in record["families"]} for name, split in splits.items()}
    assert "DejaVu Serif" in faces["heldout"] and len(faces["heldout"]) > 2
    assert "DejaVu Serif" not in faces["train"] | faces["dev"]
    texts = make_lines.split_texts([f"paragraph {number}" for number in range(100)])
    assert sum(map(len, texts.values())) == 100 and len(set().union(*texts.values())) == 100


def test_half_is_english_and_half_is_random(made, text_folder):
    records = made[1]["train"]
    whole = normalise_text((text_folder / "tales.txt").read_text())
    kinds = [record["kinds"][0] for record in records]
    assert 0.2 < kinds.count(SHUFFLED) / len(kinds) + kinds.count(LETTERS) / len(kinds) < 0.7
    for record in records:
        line = record["conversations"][1]["value"]
        assert 0 < len(line) <= 24
        assert record["kinds"] != ["english"] or line in whole
    drawn = "".join(letters(random.Random(seed), (), 24) for seed in range(200))
    assert re.fullmatch(r"[A-Za-z0-9 ]+", drawn) and len(set(drawn)) == 63


def test_lines_of_one_image_are_in_order(text_folder, made, tmp_path, faces):
    rows = ["--rows", "3", "--width", "128", "--characters", "8", "--avoid", str(made[0] / "heldout.jsonl")]
    splits = make(text_folder, tmp_path / "out", *rows)
    texts = {name: [record["conversations"][1]["value"] for record in split] for name, split in splits.items()}
    numbers = [text.count("\n") + 1 for text in texts["train"]]
    assert set(numbers) == {1, 2, 3} and all("\n" not in text for text in texts["heldout"] + texts["dev"])
    held_out = {line for record in made[1]["heldout"] for line in record["conversations"][1]["value"].split("\n")}
    assert not held_out & {line for split in texts.values() for text in split for line in text.split("\n")}
    for record, number in zip(splits["train"], numbers, strict=True):
        image = np.asarray(Image.open(tmp_path / "out" / record["image"]))
        assert image.shape == (96, 128) and len(record["families"]) == number
        inked = [bool(np.ptp(image[at : at + 32].astype(int))) for at in (0, 32, 64)]
        assert inked.count(True) == number and "".join("01"[one] for one in inked).strip("0") == "1" * number
    groups = {record["kinds"][0] for record in splits["heldout"]}
    assert {"english", "english, unseen family"} <= groups and "several lines" not in groups


def test_our_own_reader_reads_them(made):
    source = open_source(str(made[0] / "heldout.jsonl"))
    first = source[0]
    assert len(source) == 60 and first.turns[0].parts[-1].strip() == OCR_PROMPT
    with Image.open(made[0] / made[1]["heldout"][0]["image"]) as image:
        assert image.size == (256, 32)
    with Image.open(made[0] / "preview.png") as sheet:
        assert sheet.width > 1000


def test_ink_is_complete_at_every_freedom(faces):
    """Every line has a border without ink."""
    for freedom in (0.0, 0.5, 1.0):
        style = LineStyle((160, 32), 24, "", freedom)
        for seed in range(40):
            rng = random.Random(seed)
            face = rng.choice(faces)
            text = letters(rng, (), rng.randint(3, 24))
            image = np.asarray(draw(rng, text, face, style, "")).astype(int)
            paper = np.bincount(image.ravel()).argmax()
            edge = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
            assert (edge == paper).all() and (image != paper).any()


def test_a_line_that_does_not_fit_is_a_defect(faces):
    style = LineStyle((40, 12), 24, "")
    with pytest.raises(DefectError, match=r"line 3 of train, seed 7: 'W+' covers .* leaves its room"):
        draw(random.Random(0), "W" * 24, faces[0], style, "line 3 of train, seed 7")


def test_users_mistakes(made, text_folder, tmp_path, capsys):
    def told(*words):
        with pytest.raises(SystemExit) as end:
            make_lines.main(["--text", str(text_folder), "--workers", "0", *words])
        assert end.value.code == 2
        return capsys.readouterr().err

    assert "was started with other settings (seed" in told("--out", str(made[0]), "--seed", "1")
    assert "must be one of at least two families, found DejaVu Sans," in told(
        "--out", str(tmp_path / "a"), "--unseen-family", "Papyrus"
    )
    assert "is not a folder" in told("--out", str(tmp_path / "a"), "--fonts", str(tmp_path / "none"))
    assert "expected a number from 0 to 1" in told("--out", str(tmp_path / "a"), "--freedom", "3")


@pytest.mark.slow
def test_english_corpus_is_large_enough():
    from synthetic import english_corpus

    words = [word for paragraph in english_corpus.paragraphs() for word in paragraph.split()]
    assert len(words) > 100_000 and len(set(words)) > 8_000
