"""The quickstart's data: answers are correct, questions are independent, bytes are reproducible."""

import collections
import dataclasses
import itertools
import json
import random
import re
import subprocess
import sys
from pathlib import Path

import digit_questions
import digit_scenes as ds
import numpy as np
import pytest

from mmchat.data.records import write_records
from mmchat.errors import UserError


@pytest.fixture(scope="module")
def conversations():
    """1,500 scenes of the training split and the questions asked about each."""
    made = []
    for index in range(1500):
        rng = random.Random(f"test/{index}")
        light, things = ds.compose(rng, ds.GLYPHS["train"])
        made.append((light, things, digit_questions.converse(rng, things)))
    return made


def answer(things, text: str) -> str | None:
    """The answer to a question, computed independently of the generator; None if it is ambiguous."""
    colors = "|".join(digit_questions.COLORS)
    digit, color = re.search(r"\d", text), re.search(colors, text)
    extreme = re.search(r"leftmost|rightmost|highest|lowest", text)
    if re.match(r"Describe|What is in", text):
        ordered = sorted(things, key=lambda t: t.x)
        if any(b.x - a.x < 0.08 for a, b in itertools.pairwise(ordered)):
            return None
        return re.sub(
            r"(.*), ", r"\1 and ", ", ".join(f"a{'n' * (t.color == 'orange')} {t.color} {t.digit}" for t in ordered)
        )
    if re.search(r"Is there|Can you", text):
        return "yes" if any(t.digit == int(digit[0]) for t in things) else "no"
    if re.match(r"How many|Count", text):
        return str(sum(t.color == color[0] for t in things) if color else len(things))
    if digit:
        match = [t.color for t in things if t.digit == int(digit[0])]
        return match[0] if len(match) == 1 else None
    if color:
        match = [str(t.digit) for t in things if t.color == color[0]]
        return match[0] if len(match) == 1 else None
    value = {
        "leftmost": lambda t: t.x, "rightmost": lambda t: -t.x, "highest": lambda t: t.y, "lowest": lambda t: -t.y,
    }[extreme[0]]  # fmt: skip
    ordered = sorted(things, key=value)
    if len(ordered) < 2 or value(ordered[1]) - value(ordered[0]) < 0.1:
        return None
    return str(ordered[0].digit)


def claims(things, said: str) -> list[bool]:
    """Whether each sentence of an answer or of statements is true, computed independently of the generator."""
    true = []
    for sentence in re.split(r", | and ", said):
        color, digit = re.search("|".join(digit_questions.COLORS), sentence), re.search(r"\d", sentence)
        same_color = [t for t in things if color and t.color == color[0]]
        same_digit = [t for t in things if digit and t.digit == int(digit[0])]
        both = [t for t in same_color if t in same_digit]
        if ":" in sentence:
            true.append(len(same_color) == int(digit[0]))
        elif "no" in sentence.split():
            true.append(not same_digit)
        elif not color:
            true.append(len(things) == int(digit[0]))
        else:
            true.append(len(both) >= 1)
    return true


def worlds(things):
    """Scenes that differ in one respect: a digit, a colour, one thing fewer or one more."""
    for i, thing in enumerate(things):
        rest = things[:i] + things[i + 1 :]
        for digit in range(10):
            yield (*rest, dataclasses.replace(thing, digit=digit))
            yield tuple(dataclasses.replace(t, digit=digit) if t.digit == thing.digit else t for t in things)
        for color in digit_questions.COLORS:
            yield (*rest, dataclasses.replace(thing, color=color))
            yield tuple(dataclasses.replace(t, color=color) if t.color == thing.color else t for t in things)
        if rest:
            yield rest
    if len(things) < 4:
        for x, y in itertools.product((0.2, 0.5, 0.8), (0.2, 0.5, 0.8)):
            for digit, color in itertools.product(range(10), digit_questions.COLORS):
                yield (*spread(things), digit_questions.SceneDigit(digit, color, x, y, 0.3))


def spread(things):
    """The same scene with larger distances. Answers depend only on the order, which is kept."""
    ranks = {name: sorted(getattr(t, name) for t in things) for name in ("x", "y")}
    far = dict.fromkeys(("x", "y"), (0.05, 0.35, 0.65, 0.95))
    if len(things) < 3:
        far = {name: values[::3] for name, values in far.items()}
    move = lambda t: {name: far[name][ranks[name].index(getattr(t, name))] for name in far}  # noqa: E731
    return tuple(dataclasses.replace(t, **move(t)) for t in things)


def test_answers_are_right_and_unambiguous(conversations):
    for _, things, questions in conversations:
        for question in questions:
            assert answer(things, question.text) == question.value, (things, question)
            assert all(claims(things, question.answer)), (things, question)
            value = {"yes": "there is a", "no": "there is no"}.get(question.value, question.value)
            assert value in question.answer


def test_statements_are_true_and_each_thing_has_one(conversations):
    lengths = collections.Counter()
    for index, (_, things, _) in enumerate(conversations):
        said = digit_questions.statements(random.Random(index), things)
        assert all(claims(things, said)), (things, said)
        named = re.findall(rf"({'|'.join(digit_questions.COLORS)}) (\d)", said)
        assert len(named) == len(set(named))
        lengths[len(said.split(", "))] += 1
    assert {1, 2, 3, 4} <= lengths.keys()


def test_lookups_ask_about_each_of_some_different_digits(tmp_path):
    records = ds.write_split(tmp_path, "lookups", 60, seed=0, side=64, workers=1)
    kinds = collections.Counter()
    for index, record in enumerate(records):
        rng = random.Random(f"0/lookups/{index}")
        things = ()
        while not things or not digit_questions.all_different(things):
            _, things = ds.compose(rng, ds.GLYPHS["lookups"], ds.NUMBERS["lookups"])
        assert len(things) in (2, 3) and len({t.digit for t in things}) == len({t.color for t in things}) == len(things)
        texts, answers = ([turn["value"] for turn in record["conversations"][k::2]] for k in (0, 1))
        named = [said for said in answers if "no" not in said.split()]
        assert len(set(named)) == len(things) and len(answers) - len(named) in (0, 1)
        for text, said in zip(texts, answers, strict=True):
            value = answer(things, text)
            assert {"yes": "there is a", "no": "there is no"}.get(value, value) in said and all(claims(things, said))
        kinds.update(record["kinds"])
    assert kinds["color_of_digit"] > kinds["digit_of_color"] > 0 and kinds["has_digit"] > kinds["digit_of_color"]


def test_false_claims_are_detected():
    """The two tests above can fail."""
    things = (digit_questions.SceneDigit(7, "red", 0.3, 0.3, 0.3),)
    said = "the red 7, the 7 is red, red digits: 1, there is no 3, the red 3, red digits: 2, there is no 7"
    assert claims(things, said) == [True] * 4 + [False] * 3


def test_no_question_reveals_the_answer_of_another(conversations):
    """For each question there are scenes in which all other answers are the same and its answer differs."""
    needed = {"count": 1, "count_color": 1, "has_digit": 1, "color_of_digit": 3}
    for _, things, questions in conversations[:600]:
        missing = {q: needed.get(q.kind, 5) for q in questions}
        others = {q: set() for q in questions}
        for world in worlds(things):
            said = [answer(world, q.text) for q in questions]
            changed = [q for q, now in zip(questions, said, strict=True) if now != q.value]
            if len(changed) == 1 and (now := said[questions.index(changed[0])]) is not None:
                others[changed[0]].add(now)
            if all(len(others[q]) >= missing[q] for q in questions):
                break
        else:
            known = [(q, others[q]) for q in questions if len(others[q]) < missing[q]]
            pytest.fail(f"revealed: {known} in {things} by {questions}")


def test_a_revealed_answer_is_detected():
    """The test above can fail: the answer which digit is red reveals that the digit is present."""
    things = (digit_questions.SceneDigit(7, "red", 0.3, 0.3, 0.3), digit_questions.SceneDigit(2, "blue", 0.7, 0.7, 0.3))
    said = [("Which digit is red?", "7"), ("Is there a 7?", "yes")]
    held = [w for w in worlds(things) if answer(w, said[0][0]) == said[0][1]]
    assert held and {answer(w, said[1][0]) for w in held} == {"yes"}


def test_kinds_are_many_balanced_and_in_any_order(conversations):
    kinds = collections.Counter(q.kind for *_, questions in conversations for q in questions)
    assert len(kinds) >= 8 and max(kinds.values()) < 0.2 * kinds.total() and min(kinds.values()) > 0.03 * kinds.total()
    places = collections.defaultdict(set)
    for *_, questions in conversations:
        assert len({q.text for q in questions}) == len(questions)
        for place, question in enumerate(questions):
            places[question.kind].add(min(place, 2))
    assert all(seen == ({0} if kind == "describe" else {0, 1, 2}) for kind, seen in places.items())


def test_the_most_common_answer_scores_low(conversations):
    answers = collections.defaultdict(collections.Counter)
    for *_, questions in conversations:
        for question in questions:
            answers[question.kind][question.answer] += 1
    assert sum(max(a.values()) for a in answers.values()) < 0.3 * sum(a.total() for a in answers.values())


def test_digits_stay_apart_inside_and_visible(conversations):
    for light, things, _ in conversations:
        for i, a in enumerate(things):
            assert a.size >= 0.25 and a.size / 2 <= min(a.x, a.y) and max(a.x, a.y) <= 1 - a.size / 2
            assert a.color not in (("yellow", "white") if light else ("black",))
            assert all(max(abs(a.x - b.x), abs(a.y - b.y)) >= (a.size + b.size) / 2 for b in things[:i])
    for index in range(50):
        image, _ = ds.make_sample("train", index, 0, 64)
        pixels = np.asarray(image, dtype=int)
        far = np.abs(pixels - np.median(pixels, axis=(0, 1))).sum(-1) > 100
        assert far.mean() > 0.01


def test_splits_share_no_scan(monkeypatch):
    assert ds.GLYPHS["named"] == ds.GLYPHS["heldout"]
    ranges = [ds.GLYPHS[split] for split in ("train", "dev", "heldout")]
    assert ranges == [(0, 1200), (1200, 1500), (1500, len(ds.glyphs()[1]))]
    used = collections.defaultdict(set)
    for split in ds.GLYPHS:
        for index in range(200):
            _, things = ds.compose(random.Random(index), ds.GLYPHS[split])
            used[split].update(t.glyph for t in things)
    assert not used["heldout"] & (used["train"] | used["captions"] | used["dev"]) and not used["dev"] & used["train"]


def test_same_bytes_for_any_number_of_workers(tmp_path):
    for workers in (1, 2):
        ds.write_split(tmp_path / str(workers), "heldout", 70, seed=3, side=64, workers=workers)
    one, two = ({p.relative_to(d): p.read_bytes() for p in d.rglob("*.*")} for d in (tmp_path / "1", tmp_path / "2"))
    assert one == two and len(one) == 71


def test_verify_refuses_another_heldout_split(tmp_path):
    records = ds.write_split(tmp_path, "heldout", 5, seed=0, side=64, workers=1)
    ds.verify(records, tmp_path / "heldout.json")
    with pytest.raises(UserError, match="--heldout 5"):
        ds.verify(records[:4], tmp_path / "heldout.json")
    records[3]["sha256"] = "0" * 64
    (tmp_path / "other.json").write_text(json.dumps(records))
    few = [
        word for split in ("captions", "statements", "lookups", "train", "dev", "named") for word in (f"--{split}", "2")
    ]
    words = ["--out", str(tmp_path / "again"), "--heldout", "5", "--verify", str(tmp_path / "other.json"), *few]
    with pytest.raises(UserError, match="heldout/000003: `sha256` differs"):
        ds.main(words)
    # The quickstart checks for this file, so a refused split must not leave it.
    assert (tmp_path / "again" / "dev.json").exists() and not (tmp_path / "again" / "heldout.json").exists()


def test_a_user_error_is_one_line_and_exit_status_2(tmp_path):
    tool = Path(__file__).parents[2] / "data_tools" / "digit_scenes.py"
    (tmp_path / "none.json").write_text("[]")
    few = [word for split in ds.GLYPHS for word in (f"--{split}", "2")]
    words = [sys.executable, str(tool), "--out", str(tmp_path), "--verify", str(tmp_path / "none.json"), *few]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "has 0 records, but 2 were made: use --heldout 0." in result.stderr


def test_tokenizer_is_small_fast_and_deterministic(tmp_path):
    import train_tokenizer as tool
    from transformers import AutoTokenizer

    ds.write_split(tmp_path, "train", 300, seed=0, side=64, workers=1)
    write_records(tmp_path / "train.jsonl", json.loads((tmp_path / "train.json").read_text()))
    for name, suffix in (("a", "json"), ("b", "jsonl")):
        tool.main([str(tmp_path / f"train.{suffix}"), "--out", str(tmp_path / name), "--vocab-size", "400"])
    assert (tmp_path / "a/tokenizer.json").read_bytes() == (tmp_path / "b/tokenizer.json").read_bytes()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a")
    assert tokenizer.is_fast and len(tokenizer) <= 400
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<s>", "</s>", "<unk>")
    text = "What color is the 72? Füße\n"
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id and tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert {"7", "2"} <= set(tokenizer.convert_ids_to_tokens(ids))


def test_closeups_are_larger_labelled_and_drawn_only_on_request(tmp_path):
    counts = [word for split in ds.GLYPHS for word in (f"--{split}", "3")]
    ds.main(["--out", str(tmp_path), *counts, "--workers", "1"])
    assert not (tmp_path / "closeups.json").exists() and (tmp_path / "heldout.json").exists()
    ds.main(["--out", str(tmp_path / "more"), "--closeups", "40", "--only", "closeups", "--workers", "1"])
    assert [path.name for path in sorted((tmp_path / "more").iterdir())] == ["closeups", "closeups.json"]
    records = json.loads((tmp_path / "more" / "closeups.json").read_text())
    assert len(records) == 40 and all(re.fullmatch(r"an? \w+ \d", record["label"]) for record in records)
    sizes = [ds.compose(random.Random(n), ds.TRAINING, (1,), ds.ZOOM["closeups"])[1][0].size for n in range(200)]
    assert min(sizes) > 0.52 and 0.8 < max(sizes) < 1
