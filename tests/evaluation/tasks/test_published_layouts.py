"""Every published layout of every task: the same questions, answers and images come out of each."""

from string import ascii_uppercase

import numpy as np
import pytest

from mmchat.errors import UserError
from mmchat.evaluation.tasks.definition import open_task, task_names
from mmchat.evaluation.tasks.prompts import TaskPrompt
from mmchat.evaluation.tasks.reading import TaskData
from tests.evaluation.tasks.published import CHOICES, MAKERS, SEVERAL, TEN, picture, save, write_json, write_lines

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
OPTIONS = "\nA. cat\nB. dog\nC. hen"
ANSWERS = {
    **dict.fromkeys(("vqav2", "textvqa"), tuple(TEN)),
    **dict.fromkeys(("gqa", "chartqa", "ocrbench"), ("net",)),
    **dict.fromkeys(("docvqa", "infovqa", "coco_captions"), tuple(SEVERAL)),
    **dict.fromkeys(("scienceqa_img", "mmbench", "mmstar", "seed_img", "ai2d"), ("B",)),
}
FIRST_PROMPT = {
    **dict.fromkeys(("vqav2", "gqa", "textvqa", "docvqa", "infovqa"), f"What is 1?{SHORT}"),
    "pope": f"Is there 1?{SHORT}",
    "scienceqa_img": f"Context: A hint.\nWhat is 1?{OPTIONS}{LETTER}",
    "mmbench": f"A hint.\nWhat is 1?{OPTIONS}{LETTER}",
    "mmstar": f"What is 1?{OPTIONS}{LETTER}",
    "mme": f"Is it 1?{SHORT}",
    "seed_img": f"What is 1?{OPTIONS}\nD. cow{LETTER}",
    "ai2d": f"What is 1?{OPTIONS}{LETTER}",
    "chartqa": "What is 1?\nAnswer the question with a single word.",
    "ocrbench": "What is 1?",
    "coco_captions": "Provide a one-sentence caption for the provided image.",
    "pages": "Provide the ocr results of this image.",
}
PROMPT_OF_LAYOUT = {
    ("mmstar", 1): f"What is 1?\nOptions: A: cat, B: dog, C: hen, D: cow{LETTER}",
    ("seed_img", 2): f"What is 1?{OPTIONS}{LETTER}",
}


def test_every_layout_has_a_file():
    assert task_names() == sorted(MAKERS)
    assert {name: len(open_task(name)[1].layouts) for name in MAKERS} == {k: len(v) for k, v in MAKERS.items()}


def read(name, folder, layout=0):
    _, task = open_task(name)
    return task, TaskData(task, MAKERS[name][layout](folder))


@pytest.mark.parametrize(
    ("name", "layout"), [(name, number) for name, makers in MAKERS.items() for number in range(len(makers))]
)
def test_a_layout(name, layout, tmp_path):
    task, data = read(name, tmp_path, layout)
    assert data.layout == task.layouts[layout]
    firsts = {}
    for sample in data.samples:
        firsts.setdefault(sample.image, sample)
    one, two = firsts.values()
    assert one.id != two.id
    prompt = TaskPrompt(task.prompt)
    assert prompt.fill(one.question, one.options, one.fields) == PROMPT_OF_LAYOUT.get(
        (name, layout), FIRST_PROMPT[name]
    )
    for n, sample in ((1, one), (2, two)):
        (image,) = data.images(sample)
        if not str(getattr(image, "path", "")).endswith("jpg"):
            assert np.array_equal(np.asarray(image.open()), np.asarray(picture(n)))
    if name in ANSWERS:
        assert one.answers == two.answers == ANSWERS[name]
    assert set(task.by) & set(data.layout.fields) <= set(one.fields)
    assert data.left_out == (1 if (name, layout) == ("scienceqa_img", 0) else 0)


@pytest.mark.parametrize("layout", [0, 1, 2])
def test_pope(tmp_path, layout):
    _, data = read("pope", tmp_path, layout)
    assert [sample.answers[0].lower() for sample in data.samples[:2]] == ["yes", "no"]
    if layout == 0:
        assert [sample.fields["category"] for sample in data.samples] == ["coco_pope_random"] * 2 + [
            "coco_pope_popular"
        ] * 2
        assert data.samples[0].id == "coco_pope_random/1"


@pytest.mark.parametrize("layout", [0, 1])
def test_mmbench_has_all_orders(tmp_path, layout):
    """In the file, or made: the same options and letters."""
    _, data = read("mmbench", tmp_path, layout)
    orders = sorted((sample.group, sample.options, sample.answers) for sample in data.samples)
    expected = []
    for group in ("1", "2"):
        for turn in range(3):
            options = CHOICES[turn:] + CHOICES[:turn]
            expected.append((group, tuple(options), (ascii_uppercase[options.index("dog")],)))
    assert orders == sorted(expected)
    assert len({sample.id for sample in data.samples}) == 6
    assert len({sample.image for sample in data.samples}) == 2  # a row number stands for the image of that row
    for sample in data.samples:
        assert len(data.images(sample)) == 1


@pytest.mark.parametrize("layout", [0, 1, 2])
def test_mme_pairs(tmp_path, layout):
    _, data = read("mme", tmp_path, layout)
    categories = [(sample.fields["category"], sample.answers[0].lower()) for sample in data.samples]
    assert sorted(categories) == [("artwork", "no"), ("artwork", "yes"), ("existence", "no"), ("existence", "yes")]
    assert len({sample.group for sample in data.samples}) == len({sample.image for sample in data.samples}) == 2


def test_formulas_of_ocrbench_are_known(tmp_path):
    _, data = read("ocrbench", tmp_path)
    assert [sample.fields["formula"] for sample in data.samples] == ["IIIT5K", "HME100k"]


def test_a_task_of_ones_own(tmp_path):
    save(tmp_path / "a.png", 1)
    rows = [{"image": "a.png", "q": "Which?", "right": ["cat", "kitten"], "kind": "animals"}]
    data_file = write_json(tmp_path / "data.json", rows)
    (tmp_path / "mine.yaml").write_text(
        "title: mine\nfollows: nothing\nprompt: |\n  {question}\nscore: same_text\nby: [kind]\n"
        "layouts:\n  - {name: own, question: q, answers: right, fields: {kind: kind}}\n"
    )
    name, task = open_task(str(tmp_path / "mine.yaml"))
    (sample,) = TaskData(task, [data_file]).samples
    assert (name, sample.answers, sample.fields) == ("mine", ("cat", "kitten"), {"kind": "animals"})


# Mistakes


def test_an_unknown_task():
    with pytest.raises(UserError, match=r"no task 'popee'; the nearest is 'pope'; `mmchat eval tasks` lists them"):
        open_task("popee")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("score: f2", "score 'f2' is none of choice, circular"),
        ("score: relaxed\nparser: x", "parser 'x' is none of text"),
        ("score: relaxed\nby: [kind]", "field 'kind' is in no layout's fields: none"),
        ("score: relaxed\nprompts: x", "unknown key 'prompts'; the nearest valid key is 'prompt'"),
    ],
)
def test_a_mistake_in_a_task_file(tmp_path, line, message):
    path = tmp_path / "mine.yaml"
    path.write_text(f"title: t\nfollows: f\nprompt: x\nlayouts: [{{name: own}}]\n{line}\n")
    with pytest.raises(UserError, match=f"mine.yaml: .*{message.replace('[', '.')}"):
        open_task(str(path))


def test_data_in_no_layout(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", [{"question": "?", "reply": "a"}])
    _, task = open_task("pope")
    with pytest.raises(UserError) as error:
        TaskData(task, [path])
    assert "is in none of the layouts of this task" in str(error.value)
    assert "lmms-lab/POPE, parquet: no column image, answer, category, question_id" in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": "Q"}, "must be a letter from A to C, found Q"),
        ({"question": ""}, "column 'question' is empty"),
        ({"index": 1}, "id '1' occurs twice"),
    ],
)
def test_a_row_that_cannot_be_used(tmp_path, change, message):
    first = {"index": 1, "question": "?", "A": "x", "B": "y", "C": "z", "answer": "A", "image": "a.png"}
    first["category"] = "Scene"
    path = write_lines(tmp_path / "x.jsonl", [first, first | {"index": 2} | change])
    _, task = open_task("seed_img")
    with pytest.raises(UserError, match=message):
        TaskData(task, [path])


def test_a_cell_that_only_looks_like_a_list(tmp_path):
    save(tmp_path / "a.png", 1)
    rows = [{"questionId": n, "image": "a.png", "question": "?", "answers": text} for n, text in enumerate(TEXTS)]
    _, task = open_task("docvqa")
    data = TaskData(task, [write_json(tmp_path / "x.json", rows)])
    assert [sample.answers for sample in data.samples] == [("[1, 2",), ("[sic]",), ("1", "x"), ("[" * 3000 + "]",)]


TEXTS = ["[1, 2", "[sic]", "[1, 'x']", "[" * 3000 + "]"]


def test_json_that_is_nested_too_deeply(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"data": ' + "[" * 100_000)
    _, task = open_task("docvqa")
    with pytest.raises(UserError, match="is not valid JSON"):
        TaskData(task, [path])
