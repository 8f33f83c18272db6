"""The length index equals rendering every record, and is rebuilt exactly when needed."""

import json
import re

import numpy as np
import pytest

from mmchat.cli.main import main
from mmchat.constants import IGNORE_INDEX
from mmchat.data.lengths import LengthIndex, LengthMeasure, index_path, length_index
from mmchat.data.records import Rejected
from mmchat.data.sources import Source, open_source
from mmchat.errors import UserError
from mmchat.model.directory import load_processor

MAX_LENGTH = 120
COLUMNS = ("tokens", "supervised", "images", "views", "patches", "slots")


@pytest.fixture
def cache(cache):
    """Where length indexes lie."""
    return cache / "lengths"


@pytest.fixture
def processor(assistant_dir):
    return load_processor(assistant_dir)


def talk(*values, **more):
    turns = [{"from": ("human", "gpt")[n % 2], "value": value} for n, value in enumerate(values)]
    return {"conversations": turns, **more}


@pytest.fixture
def path(tmp_path, tiny_records):
    """Text, one image, two images, two rounds; and one each of what cannot be used."""
    records = json.loads(tiny_records.read_text())
    records += [
        talk("Q", "A", "And now? 😀", "中文, and\n\tmore."),
        talk("<image>", "gone", image="gone.png"),
        talk("<image>", "no image"),
        talk("word " * MAX_LENGTH, "never reached"),
        talk("Q", "cut " * MAX_LENGTH),
        ["no record"],
    ]
    file = tmp_path / "all.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def slowly(source: Source, processor, max_length, template=None) -> np.ndarray:
    """uint32[6, samples], one record after the other."""
    rows = []
    for record in source:
        row = (0, 0, 0, 0, 0, 0)
        if not isinstance(record, Rejected):
            try:
                rendered = processor.render(record.turns, max_length=max_length, template=template)
                learned = sum(label != IGNORE_INDEX for label in rendered.labels[1:])
                images = len(rendered.image_spans)
                row = (
                    len(rendered.input_ids),
                    learned,
                    images,
                    images,
                    images * processor.image_processor.specs[0].tokens,
                    sum(stop - start for start, stop in rendered.image_spans),
                )
            except UserError:
                pass
        rows.append(row)
    return np.array(rows, np.uint32).T


def columns(index: LengthIndex) -> np.ndarray:
    return np.stack([getattr(index, name) for name in COLUMNS])


@pytest.fixture
def reads(monkeypatch):
    """The numbers of the records read, in this process."""
    numbers = []
    read = Source.__getitem__
    monkeypatch.setattr(Source, "__getitem__", lambda self, index: numbers.append(index) or read(self, index))
    return numbers


@pytest.mark.parametrize("template", [None, "llama_2"])
def test_the_index_is_a_loop_over_render(path, processor, template):
    source = open_source(path)
    index = length_index(source, LengthMeasure(processor, MAX_LENGTH, template), workers=0)
    expected = slowly(source, processor, MAX_LENGTH, template)
    assert np.array_equal(columns(index), expected)
    assert all(getattr(index, name).dtype == np.uint32 for name in COLUMNS)
    assert len(index) == len(source) == 10
    if template is None:
        assert index.usable.tolist() == [0, 1, 2, 3, 4, 8]
        assert index.images.tolist() == [0, 1, 1, 2, 0, 0, 0, 0, 0, 0]
        assert index.tokens[8] == MAX_LENGTH and (index.supervised[index.usable] > 0).all()


def test_other_processes_measure_the_same(path, processor, cache):
    # More chunks than wait at once, and none like another, so that their order is put to the test.
    long = path.with_name("long.jsonl")
    long.write_text(path.read_text() + "".join(json.dumps(talk("Q", "a" * (n // 100))) + "\n" for n in range(6000)))
    source, measure = open_source(long), LengthMeasure(processor, MAX_LENGTH)
    alone = columns(length_index(source, measure, workers=0))
    index_path(source, measure).unlink()
    together = columns(length_index(source, measure, workers=2))
    assert alone.shape == (len(COLUMNS), 6010) and np.array_equal(alone, together)
    assert len(np.unique(alone[0, 10::1000])) == 6


def test_a_second_time_no_record_is_read(path, processor, assistant_dir, reads):
    first = columns(length_index(open_source(path), LengthMeasure(processor, MAX_LENGTH), workers=0))
    assert set(reads) == set(range(10))
    unusable = set(np.flatnonzero(first[0] == 0).tolist())
    reads.clear()
    again = columns(
        length_index(open_source(path), LengthMeasure(load_processor(assistant_dir), MAX_LENGTH), workers=0)
    )
    assert set(reads) <= unusable  # what could not be used may be looked at again
    assert np.array_equal(first, again)
    copy = path.with_name("copy.jsonl")
    copy.write_bytes(path.read_bytes())
    assert index_path(open_source(copy), LengthMeasure(processor, MAX_LENGTH)).exists()


def test_whatever_changes_lengths_makes_a_new_index(path, processor, assistant_dir, make_assistant):
    def key(**measure):
        return index_path(
            open_source(path), LengthMeasure(**{"processor": processor, "max_length": MAX_LENGTH, **measure})
        )

    def changed(change):
        other = load_processor(assistant_dir)
        change(other)
        return key(processor=other)

    first = key()
    assert first == key() == key(processor=load_processor(assistant_dir))
    keys = [
        first,
        key(max_length=MAX_LENGTH - 1),
        key(max_length=None),
        key(template="llama_2"),
        key(processor=make_assistant("qwen2")[1]),
        changed(lambda p: p.tokenizer.add_tokens(["Noise"])),
        changed(lambda p: setattr(p, "template", "llama_2")),
        changed(lambda p: setattr(p, "system", "Be brief.")),
        changed(lambda p: setattr(p, "image_tokens", 4)),
        changed(lambda p: setattr(p, "slots", {"pad": "<imgpad>"})),
    ]
    text = path.read_text()
    path.write_text(text.replace("Four.", "Five."))
    keys.append(key())
    assert len(set(keys)) == len(keys)
    path.write_text(text)
    assert key() == first


def test_changed_data_is_measured_again(path, processor):
    measure = LengthMeasure(processor, MAX_LENGTH)
    before = columns(length_index(open_source(path), measure, workers=0))
    path.write_text(path.read_text().replace("Four.", "Four, I believe."))
    source = open_source(path)
    after = columns(length_index(source, measure, workers=0))
    assert np.array_equal(after, slowly(source, processor, MAX_LENGTH))
    assert after[0, 0] > before[0, 0] and np.array_equal(after[:, 1:], before[:, 1:])


@pytest.mark.parametrize("damage", ["cut", "other", "empty", "shape"])
def test_a_damaged_index_is_rebuilt(path, processor, damage):
    source, measure = open_source(path), LengthMeasure(processor, MAX_LENGTH)
    good = columns(length_index(source, measure, workers=0))
    kept = index_path(source, measure)
    whole = kept.read_bytes()
    if damage == "shape":
        np.save(kept, good[:, 1:])
    else:
        kept.write_bytes({"cut": whole[:-9], "other": b"no index at all", "empty": b""}[damage])
    assert np.array_equal(columns(length_index(source, measure, workers=0)), good)
    assert kept.read_bytes() == whole


def test_a_cache_that_cannot_be_written_costs_time_only(path, processor, cache):
    cache.parent.mkdir(exist_ok=True)
    cache.write_text("in the way")
    source = open_source(path)
    index = length_index(source, LengthMeasure(processor, MAX_LENGTH), workers=0)
    assert np.array_equal(columns(index), slowly(source, processor, MAX_LENGTH))


def test_the_command_prints_what_the_index_holds(path, processor, assistant_dir, cache, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    words = [
        "data",
        "index",
        str(path),
        "--model",
        str(assistant_dir),
        "--max-length",
        str(MAX_LENGTH),
        "--workers",
        "0",
    ]
    assert main(words) == 0
    first = capsys.readouterr().out
    expected = slowly(open_source(path), processor, MAX_LENGTH)
    tokens = expected[0][expected[0] > 0]
    facts = {cell[0]: cell[1] for cell in re.findall(r"│ ([a-z0-9, /]+?) +│ +(.+?) │", first)}
    counts = (10, 6, tokens.sum(), np.median(tokens), np.percentile(tokens, 95), MAX_LENGTH)
    names = ("samples", "usable", "tokens", "tokens, median", "tokens, 95 of 100", "tokens, most")
    assert [facts[name] for name in names] == [f"{count:,.0f}" for count in counts]
    assert facts["supervised"] == f"{100 * expected[1].sum() / tokens.sum():.1f} %"
    assert (facts["images"], facts["views"], facts["patches"]) == ("4", "4", f"{expected[4].sum()}")
    assert facts["slots"] == f"{expected[5].sum()}"
    (kept,) = cache.iterdir()
    assert facts["bytes of the index"] == str(kept.stat().st_size) and f"kept in {kept}" in first
    assert main(words) == 0
    assert f"found in {kept}" in capsys.readouterr().out


def test_an_image_added_later_is_measured(path, processor, make_image):
    source, measure = open_source(path), LengthMeasure(processor, MAX_LENGTH)
    assert length_index(source, measure, workers=0).tokens[5] == 0
    make_image().save(path.parent / "gone.png")
    assert length_index(source, measure, workers=0).tokens[5] > 0
    (path.parent / "gone.png").unlink()
    assert length_index(source, measure, workers=0).tokens[5] > 0  # now it is in the cache


def test_no_usable_record_is_an_error(path, processor):
    with pytest.raises(UserError, match=r"unknown conversation template 'chatlm'; did you mean 'chatml'"):
        length_index(open_source(path), LengthMeasure(processor, MAX_LENGTH, "chatlm"), workers=0)
    with pytest.raises(UserError, match=r"all\.jsonl has no usable record; the first: the tokenizer has no token"):
        length_index(open_source(path), LengthMeasure(processor, MAX_LENGTH, "gemma"), workers=0)


def test_only_the_turns_that_training_sees(path, processor):
    source = open_source(path)
    whole, first = (length_index(source, LengthMeasure(processor, MAX_LENGTH, None, n), workers=0) for n in (None, 1))
    assert whole.tokens[4] > first.tokens[4] > 0 and whole.tokens[1] == first.tokens[1]


def test_a_lone_surrogate_is_rejected(tmp_path, processor):
    lines = [json.dumps(talk("Q \ud83d", "A")), json.dumps(talk("Q \ud83d\ude00", "A"))]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    source = open_source(tmp_path / "a.jsonl")
    assert "lone surrogate U+D83D at character 3" in source[0].reason
    assert (length_index(source, LengthMeasure(processor, MAX_LENGTH), workers=0).tokens > 0).tolist() == [False, True]
