"""Answers are kept once each, resumed after kills, and scored again without the model."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from mmchat.cli import job_options
from mmchat.cli.main import main
from mmchat.errors import UserError
from mmchat.evaluation.tasks.answering import Asking, swapped
from mmchat.evaluation.tasks.definition import open_task
from mmchat.evaluation.tasks.reading import TaskData
from mmchat.evaluation.tasks.samples import Sample
from tests.evaluation.tasks.fakes import FakeGenerator
from tests.evaluation.tasks.published import MAKERS, write_lines
from tests.launching import ROOT


def status_of(words):
    """Exit status of `mmchat`, in process."""
    try:
        return main([str(word) for word in words])
    except SystemExit as stop:
        return stop.code


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def pope(tmp_path):
    """A function that writes so many questions about a tenth as many images."""

    def make(count):
        (folder := tmp_path / "data").mkdir(exist_ok=True)
        colours = np.random.default_rng(0).integers(0, 256, max(2, count // 10))
        for number, red in enumerate(colours):
            Image.new("RGB", (4, 4), (int(red), 0, 0)).save(folder / f"{number}.png")
        rows = [
            {"question_id": n, "image": f"{n % len(colours)}.png", "text": "Is it? " + "x" * (n % 7)}
            | {"label": "yes" if n % 2 else "no"}
            for n in range(count)
        ]
        return write_lines(folder / "coco_pope_random.json", rows)

    return make


@pytest.fixture
def run(capsys, monkeypatch, assistant_dir, tmp_path):
    """run(data, *options) -> (generator, printed): `mmchat eval` on POPE with a stand-in."""

    def run(data, *options, task="pope"):
        generator = FakeGenerator()
        monkeypatch.setattr(job_options, "open_generator", lambda *_, **__: generator)
        capsys.readouterr()
        paths = data if isinstance(data, list) else [data]
        words = ["eval", assistant_dir, *paths, "--task", task, "--out", tmp_path / "out", *options]
        status = status_of(words)
        printed = capsys.readouterr()
        assert status == 0, printed.err
        return generator, printed.out

    return run


def test_every_question_once_and_blind(run, pope, tmp_path):
    generator, printed = run(pope(40))
    written = lines(tmp_path / "out" / "pope.answers.jsonl")
    assert len(written) == len(generator.asked) == 80
    assert len({(line["id"], line["image"]) for line in written}) == 80
    assert [line["image"] for line in written].count("swapped") == 40
    assert "80 answers, 0 failed, 0 were there before" in printed
    assert "f1" in printed and "questions about 4 images" in printed
    assert generator.asked[0][0].endswith("\nAnswer the question using a single word or phrase.")
    scores = json.loads((tmp_path / "out" / "pope.scores.json").read_text())
    assert scores["questions"] == 40
    assert scores["commonest_right"] == "yes"  # as common as no, but of the higher score
    assert scores["f1/guess"] == pytest.approx(2 / 3)
    assert scores["f1/low"] <= scores["f1"] <= scores["f1/high"]
    assert {"f1/blind", "f1/guess", "commonest", "cut", "looping", "category/coco_pope_random"} <= scores.keys()


def test_blind_images_are_others(run, pope):
    """Of each question the blind image is that of another question."""
    generator, _ = run(pope(40))
    own, blind = {}, {}
    for text, red in generator.asked[:40]:
        own.setdefault(text, set()).add(red)
    for text, red in generator.asked[40:]:
        blind.setdefault(text, set()).add(red)
    assert own.keys() == blind.keys()


@pytest.mark.parametrize(("blind", "count"), [("blank", 40), ("none", 20)])
def test_other_blind_images(run, pope, tmp_path, blind, count):
    generator, printed = run(pope(20), "--blind", blind)
    assert len(lines(tmp_path / "out" / "pope.answers.jsonl")) == count
    assert sum(red == 255 for _, red in generator.asked) == count - 20  # workers ask in any order
    assert ("blind (" in printed) == (blind == "blank")


def test_nothing_is_asked_twice(run, pope, tmp_path):
    data = pope(30)
    run(data, "--limit", "10")
    first = (tmp_path / "out" / "pope.answers.jsonl").read_bytes()
    generator, printed = run(data)
    assert len(generator.asked) == 40
    assert "40 answers, 0 failed, 20 were there before" in printed
    assert (tmp_path / "out" / "pope.answers.jsonl").read_bytes().startswith(first)
    generator, _ = run(data, "--limit", "10")  # the score of a part of what is there
    assert not generator.asked
    assert json.loads((tmp_path / "out" / "pope.scores.json").read_text())["questions"] == 10


def test_another_prompt_is_refused(run, pope, capsys, tmp_path):
    data = pope(10)
    run(data)
    text = (ROOT / "mmchat/evaluation/tasks/named/pope.yaml").read_text()
    (tmp_path / "pope.yaml").write_text(text.replace("a single word or phrase", "yes or no"))
    with pytest.raises(AssertionError, match=r"pope.answers.jsonl was made with prompt .*start it again with --overw"):
        run(data, task=str(tmp_path / "pope.yaml"))
    generator, _ = run(data, "--overwrite", task=str(tmp_path / "pope.yaml"))
    assert len(generator.asked) == 20


def test_an_image_that_cannot_be_read_is_a_line(run, pope, tmp_path):
    data = pope(20)
    (tmp_path / "data" / "1.png").write_bytes(b"no image")
    _, printed = run(data, "--blind", "none")
    assert "10 answers, 10 failed" in printed
    assert "10 without an answer, which count as an empty one" in printed
    assert sum("error" in line for line in lines(tmp_path / "out" / "pope.answers.jsonl")) == 10


def score_again(capsys, *words):
    capsys.readouterr()
    status = status_of(["eval", "score", *words])
    return status, *capsys.readouterr()


def test_scored_again_without_the_model(run, pope, tmp_path, capsys):
    """The same table from the answers alone, from the answers and the data, and in any order of lines."""
    data = pope(40)
    _, printed = run(data)
    out = tmp_path / "out"
    table = printed.split("\n", 1)[1].rsplit("\n", 3)[0]
    first = (out / "pope.scores.json").read_text()
    answers = out / "pope.answers.jsonl"
    answers.write_text("".join(sorted(answers.read_text().splitlines(keepends=True), reverse=True)))
    for more in ([], ["--data", data]):
        status, again, _ = score_again(capsys, answers, "--task", "pope", "--out", tmp_path / "again", *more)
        assert status == 0
        assert again.rsplit("\n", 3)[0] == table
        assert (tmp_path / "again" / "pope.scores.json").read_text() == first


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("llava.jsonl", lambda n, text: {"question_id": f"coco_pope_random/{n}", "text": text, "model_id": "m"}),
        ("vlmevalkit.tsv", lambda n, text: {"index": f"coco_pope_random/{n}", "prediction": text}),
        ("list.json", lambda n, text: {"id": f"coco_pope_random/{n}", "answer": text}),
    ],
)
def test_answers_of_other_programs(pope, tmp_path, capsys, name, make):
    """All right: F1 1. And without one of them."""
    data = pope(10)
    rows = [make(n, "Yes, it is." if n % 2 else "No") for n in range(10)]
    path = tmp_path / name

    def write(rows):
        if name.endswith("tsv"):
            text = "\n".join("\t".join(row) for row in [list(rows[0]), *(list(row.values()) for row in rows)]) + "\n"
        else:
            text = json.dumps(rows) if name.endswith("json") else "".join(json.dumps(row) + "\n" for row in rows)
        path.write_text(text)

    write(rows)
    status, printed, _ = score_again(capsys, path, "--task", "pope", "--data", data)
    assert status == 0
    assert "100.0" in printed and "blind" not in printed
    write(rows[1:])
    status, _, err = score_again(capsys, path, "--task", "pope", "--data", data)
    assert (status, "has no answer to 1 of 10 questions, as 'coco_pope_random/0'" in err) == (2, True)
    assert score_again(capsys, path, "--task", "pope", "--data", data, "--allow-missing")[0] == 0
    status, _, err = score_again(capsys, path, "--task", "pope")
    assert (status, "name the data with --data" in err) == (2, True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no answer to 10 of 10 questions"),
        ("[1]", "line 1 must have one of id, question_id"),
        ('{"id": 1}\n', "line 1 must have one of id"),
        ('{"id": 1, "answer": "x"}\n{"id": 1, "answer": "y"}\n', "line 2 answers '1' again"),
        ("{{{\n", "must hold JSON lines or a JSON array"),
        ('{"id": 99, "answer": "x"}\n', "answers 1 questions that the data do not have, as '99'"),
    ],
)
def test_files_that_hold_no_answers(pope, tmp_path, capsys, text, message):
    (tmp_path / "x.jsonl").write_text(text)
    status, _, err = score_again(capsys, tmp_path / "x.jsonl", "--task", "pope", "--data", pope(10))
    assert status == 2
    assert message in err


def test_a_test_split_is_answered_and_not_scored(run, tmp_path):
    (folder := tmp_path / "data").mkdir()
    paths = MAKERS["vqav2"][0](folder)
    rows = json.loads(paths[1].read_text())
    for row in rows["annotations"]:
        row["answers"] = []
    paths[1].write_text(json.dumps(rows))
    _, printed = run(paths, task="vqav2")
    assert "4 answers" in printed
    assert "the data hold no right answers, as those of a test split" in printed


def test_swapped_needs_two_images():
    with pytest.raises(UserError, match="needs at least two; use --blind blank or --blind none"):
        swapped([Sample("1", "?", ("yes",), image="a"), Sample("2", "?", ("no",), image="a")])


def test_swapped_images_do_not_depend_on_the_limit(pope):
    _, task = open_task("pope")
    data = TaskData(task, [pope(40)])
    few, all_of_them = (Asking(task, data, data.first(count), "swapped") for count in (10, None))
    assert few._others == all_of_them._others
    assert len(few) == 20 and len(list(few)) == 20


# Kills


def kill_and_resume(command, answers, moments):
    """Start a command, kill it when so many lines are there, again and again, and let it finish."""
    for moment in moments:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        while not (answers.exists() and answers.read_bytes().count(b"\n") >= moment):
            assert process.poll() is None, process.communicate()[1].decode()
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def command_of(data, out, model, *options, program=("mmchat.cli.main",)):
    words = [sys.executable, "-m", *program, "eval", model, data, "--task", "pope", "--out", out, *options]
    return [str(word) for word in words]


def table(printed):
    """Without the first line, which counts, and the last two, which name files."""
    return printed.rstrip("\n").split("\n")[1:-2]


def test_a_thousand_questions_and_two_kills(pope, tmp_path, assistant_dir):
    data = pope(1000)
    fake = ("tests.evaluation.tasks.fakes", "0.001")
    whole = subprocess.run(
        command_of(data, tmp_path / "whole", assistant_dir, program=fake), cwd=ROOT, capture_output=True, text=True
    )
    assert whole.returncode == 0, whole.stderr
    answers = tmp_path / "killed" / "pope.answers.jsonl"
    printed = kill_and_resume(command_of(data, answers.parent, assistant_dir, program=fake), answers, (300, 1400))
    written = lines(answers)
    assert len(written) == len({(line["id"], line["image"]) for line in written}) == 2000
    assert table(printed) == table(whole.stdout)
    one, other = ((tmp_path / name / "pope.scores.json").read_bytes() for name in ("whole", "killed"))
    assert one == other


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_thousand_questions_to_a_model_and_two_kills(pope, tmp_path, assistant_dir, ranks):
    data = pope(1000)
    options = ["--max-new-tokens", 4, "--batch-size", 16]
    whole = subprocess.run(
        command_of(data, tmp_path / "whole", assistant_dir, *options), cwd=ROOT, capture_output=True, text=True
    )
    assert whole.returncode == 0, whole.stderr
    answers = tmp_path / "killed" / "pope.answers.jsonl"
    command = command_of(data, answers.parent, assistant_dir, *options, "--ranks", ranks)
    printed = kill_and_resume(command, answers, (200, 1100))
    assert len(lines(answers)) == 2000
    assert table(printed) == table(whole.stdout)
    one, other = ((tmp_path / name / "pope.scores.json").read_bytes() for name in ("whole", "killed"))
    assert one == other


def test_choosing_by_likelihood(tmp_path, assistant_dir, capsys):
    """With the tiny model: the letter of the highest log probability, which the line keeps."""
    (folder := tmp_path / "data").mkdir()
    paths = MAKERS["mmbench"][1](folder)
    words = ["eval", assistant_dir, *paths, "--task", "mmbench", "--out", tmp_path, "--choose", "likelihood"]
    assert status_of(words) == 0
    written = lines(tmp_path / "mmbench.answers.jsonl")
    assert len(written) == 12  # two questions in three orders, and blind
    for line in written:
        assert set(line["logprobs"]) == {"A", "B", "C"}
        assert line["answer"] == max(line["logprobs"], key=line["logprobs"].get)
    printed = capsys.readouterr().out
    assert "circular" in printed and "accuracy" in printed
