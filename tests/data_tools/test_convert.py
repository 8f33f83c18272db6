"""Each kind, on a few entries in the published layout: the records, word for word, and why the others were left out."""

import json
from pathlib import Path

import convert
import pytest
from convert_readers import captions

DATA = Path(__file__).parents[1] / "fixtures" / "convert"
SHORT = "\nAnswer the question using a single word or phrase."


def record(name, image, *said):
    """said: question, answer, question, ...; the first image's place is written out by the tests."""
    turns = [{"from": ("human", "gpt")[number % 2], "value": value} for number, value in enumerate(said)]
    return {"id": name} | ({"image": image} if image else {}) | {"conversations": turns}


def read_lines(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def run(kind, out, *files, root=None, options=()):
    """(records, {id or place: reason}) of `convert.py KIND` on fixtures."""
    inputs = [str(DATA / file) for file in files]
    where = ["--image-root", str(root)] if root else []
    convert.main([kind, "--input", *inputs, "--out", str(out), *where, *options])
    left_out = read_lines(out.with_name(f"{out.name}.skipped"))
    return read_lines(out), {entry["id"] or entry["where"]: entry["reason"] for entry in left_out}


@pytest.fixture
def out(tmp_path):
    return tmp_path / "new" / "out.jsonl"


@pytest.fixture
def images(tmp_path):
    """images("a/b.jpg", ...): an image root that holds files of these names."""

    def make(*names):
        for name in names:
            (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "root" / name).touch()
        return tmp_path / "root"

    return make


def test_llava_pretrain(out, images):
    root = images("00453/004539375.jpg", "00223/002239345.jpg", "00594/005947502.jpg")
    records, left_out = run("llava_pretrain", out, "blip_laion_cc_sbu_558k.json", root=root)
    assert records == [
        record(
            "004539375",
            "00453/004539375.jpg",
            "Render a clear and concise summary of the photo.\n<image>",
            "select luxury furniture 3 - inch gel memory foam mattress topper",
        ),
        record(
            "002239345",
            "00223/002239345.jpg",
            "<image>\nWrite a terse but informative summary of the picture.",
            "a café in Zürich — « menu » \u2028 日本",
        ),
    ]
    assert left_out == {"005947502": "empty answer", "005116462": "image file missing"}
    assert "日本" in out.read_text(encoding="utf-8")


def test_llava_instruct_keeps_text_only_records_and_twice_used_ids(out):
    records, left_out = run("llava_instruct", out, "llava_v1_5_mix665k.json")
    bus = "coco/train2017/000000033471.jpg"
    assert records == [
        record(
            "000000033471",
            bus,
            "<image>\nWhat are the colors of the bus in the image?",
            "The bus in the image is white and red.",
            "What feature can be seen on the back of the bus?",
            "The back of the bus features an advertisement.",
        ),
        record("000000033471", bus, f"What is this?\n<image>{SHORT}", "Bus"),
        record(
            "n00001",
            "gqa/images/2354786.jpg",
            f"<image>\nIs the sky dark?{SHORT}",
            "Yes",
            "What is on the white wall?",
            "Pipe",
        ),
        record(
            "2337517",
            "vg/VG_100K_2/2337517.jpg",
            "<image>\nPlease provide a short description for this region: [0.57, 0.39, 0.7, 0.6].",
            "White plate.",
        ),
        record("wgByO4Y_0", None, "write a haiku, naïvely", "古池や蛙飛び込む水の音"),
    ]
    assert left_out == {
        "2JNMEFS_15": 'not as many "<image>" as images',
        "qo1a2sk_3": 'literal "<image>" in an answer',
        "1455524466": 'not as many "<image>" as images',
        "broken": "no `conversations`",
        "outside": "image path refused",
        "narrated": "the speaker of a turn is none of human, user, gpt, assistant, system",
    }


def test_sharegpt4v(out, images):
    root = images("coco/train2017/000000000009.jpg", "sam/images/sa_545504.jpg")
    records, left_out = run("sharegpt4v", out, "sharegpt4v_instruct_gpt4-vision_cap100k.json", root=root)
    assert [(r["id"], r["image"]) for r in records] == [
        ("000000000009", "coco/train2017/000000000009.jpg"),
        ("sa_545504", "sam/images/sa_545504.jpg"),
    ]
    assert records[0]["conversations"][0]["value"] == "What do you see happening in this image?\n<image>"
    assert left_out == {"textonly": "no `image`"}


def test_coco_captions(out):
    records, left_out = run("coco_captions", out, "captions_train2017.json")
    features, summary, brief = (f"<image>\n{captions.BRIEF_PROMPTS[number]}" for number in (6, 8, 1))
    cat, moped, bike = "000000522418.jpg", "000000391895.jpg", "Man riding a motor bike\non a café road."
    assert records == [
        record("681330", cat, features, "A woman in a room with a cat."),
        record("770337", moped, summary, "A man with a red helmet on a small moped on a dirt road."),
        record("771687", moped, brief, bike),
    ]
    assert left_out == {
        "772707": "no entry in `images` for the caption",
        "776154": "empty `caption`",
        "781998": 'literal "<image>" in an answer',
    }


@pytest.mark.parametrize("place", ["COCO_val2014_000000391895.jpg", "val2014/COCO_val2014_000000391895.jpg"])
def test_coco_2014_finds_images_with_and_without_their_folder(out, images, place):
    records, _ = run("coco_captions", out, "captions_val2014.json", root=images(place), options=["--prompt", ""])
    assert records == [record("770337", place, "<image>", "A man on a moped.")]


VQAV2 = ("v2_OpenEnded_mscoco_train2014_questions.json", "v2_mscoco_train2014_annotations.json")
VQAV2_LEFT_OUT = {
    "458752002": 'literal "<image>" in the text',
    "262146001": "no annotation for the question",
    "262146002": "question and annotation name different images",
    "524291000": "empty answer",
    "1000": "no question for the annotation",
}


def test_vqav2_joins_files_in_different_order_and_merges_questions_on_an_image(out):
    records, left_out = run("vqav2", out, *VQAV2)
    through, position = "What is this photo taken looking through?", "What position is this man playing?"
    assert records == [
        record(
            "458752000",
            "COCO_train2014_000000458752.jpg",
            f"<image>\n{through}{SHORT}",
            "netting",  # as often as "net", and first
            position,
            "pitcher",  # not the first, but the commonest
            "Is this man a professional baseball player?",
            "yes",
        ),
        record("262146000", "COCO_train2014_000000262146.jpg", f"<image>\nWhat color is the snow?{SHORT}", "white"),
        record("393221000", "COCO_train2014_000000393221.jpg", f"<image>\nIs the sky blue?{SHORT}", "yes"),
    ]
    assert left_out == VQAV2_LEFT_OUT


def test_max_turns_and_prompt(out):
    records, left_out = run("vqav2", out, *VQAV2, options=["--max-turns", "2", "--prompt", "In one word."])
    assert [(r["id"], len(r["conversations"])) for r in records] == [
        ("458752000", 4),
        ("458752003", 2),
        ("262146000", 2),
        ("393221000", 2),
    ]
    first = "<image>\nIs this man a professional baseball player?\nIn one word."
    assert records[1]["conversations"][0]["value"] == first
    assert left_out == VQAV2_LEFT_OUT


def test_gqa(out):
    records, left_out = run("gqa", out, "train_balanced_questions.json")
    assert records == [
        record(
            "07333408", "2375429.jpg", f"<image>\nWhat is on the white wall?{SHORT}", "pipe", "Is that pipe red?", "no"
        ),
        record("15736264", "n161313.jpg", f"<image>\nIs the tall clock small?{SHORT}", "yes"),
        record("07333410", "2375429.jpg", f"<image>\nWhich colour?{SHORT}", "white"),
    ]
    assert left_out == {"201020001": "no answer"}


def test_textvqa(out, images):
    root = images("train_images/0054c91397f2fe05.jpg", "train_images/005635e119b9f32f.jpg")
    records, left_out = run("textvqa", out, "TextVQA_0.5.1_train.json", root=root)
    assert records == [
        record("0", "train_images/0054c91397f2fe05.jpg", f"<image>\nwhat is the brand of phone?{SHORT}", "nokia"),
        record(
            "1",
            "train_images/005635e119b9f32f.jpg",
            f"<image>\nwhat does the small white text spell?{SHORT}",
            "copenhagen",
        ),
    ]
    assert left_out == {"2": "no answer"}


def test_ocrvqa_takes_one_split_and_either_suffix(out, images, capsys):
    root = images("1455524466.jpg", "761183272.gif")
    records, left_out = run("ocrvqa", out, "ocrvqa_dataset.json", root=root)
    assert records == [
        record(
            "1455524466_0",
            "1455524466.jpg",
            f"<image>\nWho wrote this book?{SHORT}",
            "Rick Perrin",
            "What is the title of this book?",
            "El Niño",
            "Is this a comics book?",
            "No",
        ),
        record("761183272_1", "761183272.gif", f"<image>\nWhat type of book is this?{SHORT}", "Calendars"),
    ]
    assert left_out == {"761183272_0": "empty answer", "158648642X": "questions and answers differ in number"}
    assert "1  of the test split, deselected" in capsys.readouterr().out


def test_ocrvqa_test_split(out):
    records, left_out = run("ocrvqa", out, "ocrvqa_dataset.json", options=["--split", "test"])
    assert [r["id"] for r in records] == ["140031996X_0"] and not left_out


def test_docvqa_with_and_without_question_types(out):
    records, left_out = run("docvqa", out, "docvqa_train_v1.0_withQT.json", "docvqa_train_v1.0.json")
    assert records == [
        record(
            "337",
            "documents/xnbl0037_1.png",
            f"<image>\nwhat is the date mentioned in this letter?{SHORT}",
            "1/8/93",
            "what is the contact person name mentioned in letter?",
            "P. Carter",
        ),
        record("340", "documents/mxcj0037_1.png", f"<image>\nWho is in cc in this letter?{SHORT}", "T.F. Riehl"),
    ]
    assert left_out == {"339": "empty answer"}


def test_docvqa_images_in_a_folder_of_another_name(out, images):
    records, _ = run("docvqa", out, "docvqa_train_v1.0.json", root=images("mxcj0037_1.png"))
    assert records[0]["image"] == "mxcj0037_1.png"


def test_chartqa(out):
    records, left_out = run("chartqa", out, "chartqa_train_human.json")
    overrated = "What's the percentage of men who thinks Valentine's Day is overrated?"
    assert records == [
        record(
            "chartqa_train_human_1",
            "png/41810321001157.png",
            f"<image>\n{overrated}{SHORT}",
            "68",
            "Is the blue bar — “Ja” — longer?",
            "Yes",
        ),
        record("chartqa_train_human_3", "png/10095.png", f"<image>\nWhich countries?{SHORT}", "[Nigeria, India]"),
    ]
    assert left_out == {"chartqa_train_human.json item 4": "empty `query`"}


def test_csv(out, images):
    root = images("müller/1.jpg", "2.jpg", "3.jpg", "4.jpg")
    records, left_out = run("csv", out, "captions.csv", root=root)
    assert records == [
        record(
            "captions_1",
            "müller/1.jpg",
            "<image>\nPresent a compact description of the photo's key features.",
            'A dog, "Rex",\non two lines',
        ),
        record("captions_2", "2.jpg", "<image>\nSummarize the visual content of the image.", "Ein Käfer"),
    ]
    assert left_out == {
        "captions_3": "empty `caption`",
        "captions_4": "not as many columns as the header",
        "captions_5": "image file missing",
    }


def test_tsv_with_named_columns_and_ids(out):
    options = ["--image-column", "Pfad", "--caption-column", "Alt", "--prompt", "Beschreibe es."]
    records, _ = run("csv", out, "alt.tsv", options=options)
    assert records == [record("q1", "2.jpg", "<image>\nBeschreibe es.", 'quote " in it')]
