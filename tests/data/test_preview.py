"""`mmchat data show` shows every id, label and image that training gets. Hostile text has no effect."""

import io
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from mmchat.cli.main import main
from mmchat.constants import IGNORE_INDEX
from mmchat.data.config import SourceConfig
from mmchat.data.preview.html import write_page
from mmchat.data.preview.pieces import runs
from mmchat.data.preview.preview import choose_records, contact_sheet, open_unscanned, preview_record
from mmchat.data.preview.terminal import half_blocks, print_samples
from mmchat.data.records import Rejected
from mmchat.model.directory import load_processor
from mmchat.vision import Tiling
from mmchat.vision.spec import Preprocessing
from tests.demo.browser import CHROMEDRIVER, CHROMIUM, browsing, requested

HOSTILE = (
    "<script>document.title='broken'</script><img src=x onerror=\"document.title='broken'\"> {{ 1 }} [bold red]x[/]"
)


@pytest.fixture
def processor(assistant_dir):
    return load_processor(assistant_dir)


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """run(*words) -> (exit status, stdout, stderr)"""
    monkeypatch.setenv("MMCHAT_CACHE", str(tmp_path / "cache"))

    def run(*words):
        capsys.readouterr()
        try:
            status = main([str(word) for word in words])
        except SystemExit as stop:
            status = stop.code
        return (status, *capsys.readouterr())

    return run


def write(path: Path, *records: dict) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def talk(*values, **more):
    return {
        "conversations": [{"from": f, "value": v} for f, v in zip(("human", "gpt") * 9, values, strict=False)],
        **more,
    }


def samples_of(path, processor, max_length=None, **config):
    part = open_unscanned("it", SourceConfig(path=str(path), **config))
    return [preview_record(part, place, processor, max_length) for place in range(len(part))]


def printed(samples, tokens=False, **console) -> str:
    options = {"color_system": None, "width": 100, **console}
    with io.StringIO() as out:
        print_samples(Console(file=out, **options), samples, tokens)
        return out.getvalue()


def test_a_sample_is_what_training_gets(processor, tiny_records):
    text, first, _, pair = samples_of(tiny_records, processor, max_length=200)
    rendered = processor.render(
        [
            {"from": "human", "value": "<image>\n<image>\nWhich is brighter?"},
            {"from": "gpt", "value": "They look the same to me."},
        ],
        max_length=200,
    )
    assert (pair.tokens, pair.slots) == (len(rendered.input_ids), 2 * processor.image_tokens)
    assert pair.supervised == len(rendered.labels) - rendered.labels.count(IGNORE_INDEX)
    assert [seen.name for seen in pair.images] == ["2.png", "3.png"]
    for seen in (*first.images, *pair.images):
        (came, pixels), *others = seen.towers
        assert not others and came == "30x22 RGB -> 28x28 shortest-edge-crop"
        assert np.array_equal(pixels, processor.image_processor.pixels(seen.original)[0])
    assert text.images == [] and text.facts()[5:] == ["0 images", "nothing cut"]
    assert text.facts()[0] == "id text" and text.facts()[1] == "template vicuna_v1"
    assert f"{text.supervised} supervised ({100 * text.supervised / text.tokens:.1f} %)" in text.facts()


def test_template_turns_and_length_are_the_sources_own(processor, tmp_path):
    path = write(tmp_path / "a.jsonl", talk("Q1", "A one", "Q2", "A two"))
    (sample,) = samples_of(path, processor, template="llama_2", max_turns=1)
    text = "".join(piece.text for piece in sample.pieces)
    assert sample.template == "llama_2" and "[INST]" in text and "Q1" in text and "Q2" not in text
    (cut,) = samples_of(path, processor, max_length=sample.tokens, template="llama_2")
    assert cut.tokens == sample.tokens and cut.cut > 0 and cut.facts()[-1] == f"{cut.cut} tokens cut"


def test_records_that_training_rejects_say_why(processor, tmp_path, make_image):
    make_image().save(tmp_path / "good.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    path = write(
        tmp_path / "a.jsonl",
        talk("<image>", "a", image="gone.png"),
        talk("<image>", "a", image="broken.png"),
        talk("<image>", "a"),
        talk("<image>", "a", image="good.png"),
    )
    *rejected, good = samples_of(path, processor)
    assert not isinstance(good, Rejected)
    reasons = ["does not exist", "not in a format that Pillow can read", "1 <image> in the human turns but 0 images"]
    out = printed([*rejected, good])
    write_page(tmp_path / "page.html", rejected, "t")
    page = (tmp_path / "page.html").read_text()
    for number, (one, reason) in enumerate(zip(rejected, reasons, strict=True), 1):
        assert isinstance(one, Rejected) and reason in one.reason
        assert reason.replace("<", "&lt;").replace(">", "&gt;") in page and f"a.jsonl:{number}" in page
        assert reason in out
    assert out.count("rejected") == page.count("rejected:") == 3
    (long,) = samples_of(write(tmp_path / "b.jsonl", talk("word " * 50, "a")), processor, max_length=20)
    assert isinstance(long, Rejected) and "nothing to learn" in long.reason


def test_brackets_mark_labels_without_colour(processor, tiny_records):
    _, first, *_ = samples_of(tiny_records, processor)
    lines = printed([first], width=300).splitlines()
    assert lines[0].startswith(
        "⟦supervised⟧  ignored  ⟨control token⟩  ⟦⟨supervised control token⟩⟧  [image 1: 256 slots]"
    )
    assert lines[-2].endswith("USER:·⟨<img>⟩[image 1: 16 slots]⟨</img>⟩·↵")
    assert lines[-1] == "What is this? ASSISTANT:⟦·An image of noise.⟨</s>⟩⟧"
    with_ids = printed([first], tokens=True, width=300)
    assert (
        "⟨</s>⟩/2/⟧" in with_ids
        and f"[image 1: 16 slots]/{processor.tokenizer.convert_tokens_to_ids('<imgpad>')}/" in with_ids
    )
    assert "▀" not in printed([first])


def test_a_terminal_shows_colours_and_the_image(processor, tiny_records):
    _, first, *_ = samples_of(tiny_records, processor)
    out = printed([first], color_system="truecolor", force_terminal=True, legacy_windows=False)
    assert "\x1b[1;32m·An image of noise.\x1b[0m\x1b[1;30;42m⟨</s>⟩" in out
    assert out.count("▀") == 32 * 16
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    blocks = half_blocks(pixels, columns=8)
    assert blocks.plain == "\n".join(["▀" * 8] * 4)
    styles = [
        "rgb({},{},{}) on rgb({},{},{})".format(*pixels[:, row, x], *pixels[:, row + 1, x])
        for row in (0, 2, 4, 6)
        for x in range(8)
    ]
    assert [span.style for span in blocks.spans] == styles
    assert half_blocks(pixels[:, :4], columns=8).plain == "\n".join(["▀" * 8] * 2)  # what SAM sees before it is padded


def test_every_view_of_an_image_is_shown(make_assistant, make_tower, make_image, tmp_path):
    """Two tiles and the thumbnail on one sheet, two beside each other, and as many slots."""
    fit = Preprocessing(fit="tiles", tiling=Tiling(max_tiles=4))
    _, tiling = make_assistant(towers=[make_tower(preprocessing=fit)])
    make_image(width=60, height=28).save(tmp_path / "a.png")
    (sample,) = samples_of(write(tmp_path / "a.jsonl", talk("<image>What?", "Noise.", image="a.png")), tiling)
    ((came, views),) = sample.images[0].towers
    assert came == "60x28 RGB -> 3 x 28x28 tiles" and views.shape == (3, 3, 28, 28)
    assert sample.slots == 3 * 16
    sheet = contact_sheet(views)
    assert sheet.shape == (3, 64, 64)
    for view, (top, left) in zip(views, ((0, 0), (0, 36), (36, 0)), strict=True):
        assert np.array_equal(sheet[:, top : top + 28, left : left + 28], view)
    assert not sheet[:, 28:36].any() and not sheet[:, :, 28:36].any() and not sheet[:, 36:, 36:].any()
    assert np.array_equal(contact_sheet(views[:1]), views[0])
    assert contact_sheet(np.concatenate([views, views[:2]])).shape == (3, 64, 100)
    write_page(tmp_path / "page.html", [sample], "a")
    assert "3 x 28x28 tiles" in (tmp_path / "page.html").read_text()
    out = printed([sample], color_system="truecolor", force_terminal=True, legacy_windows=False)
    assert out.count("▀") == 32 * 16


def test_hostile_text_stays_text(processor, tmp_path):
    path = write(tmp_path / "a.jsonl", talk(HOSTILE + "\x1b]0;title\x07", f"{HOSTILE}\x1b[2J", id=f"{HOSTILE}\x1b[31m"))
    samples = [*samples_of(path, processor), Rejected(f"{HOSTILE}\x1b", "", f"{HOSTILE}\x1b\u202e")]
    out = printed(samples, width=1000)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", out)
    assert out.count("[bold red]x[/]") == 5 and "⟨U+001B⟩[2J" in out
    write_page(tmp_path / "page.html", samples, HOSTILE)
    page = (tmp_path / "page.html").read_text()
    assert "<script" not in page and "<img src=x" not in page and "\x1b" not in page


@pytest.fixture
def page(processor, tmp_path, tiny_records):
    if not (CHROMIUM and CHROMEDRIVER):
        reason = "no chromium and chromedriver here (scripts/test.sh installs them where it can)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    hostile = write(tmp_path / "h.jsonl", talk(HOSTILE, f"{HOSTILE} 😀", id=HOSTILE), talk("<image>", "a", id=HOSTILE))
    samples = [*samples_of(tiny_records, processor), *samples_of(hostile, processor)]
    write_page(tmp_path / "page.html", samples, HOSTILE)
    with browsing((tmp_path / "page.html").as_uri(), tmp_path / "profile", 1000, 800, ready="section") as driver:
        yield driver, samples


def test_the_page_in_a_browser(page):
    driver, samples = page
    assert driver.title.startswith("mmchat data show: <script>")
    assert not driver.get_log("browser")
    assert [url for url in requested(driver) if not url.startswith(("data:", "file:"))] == []
    texts = driver.execute_script("return [...document.querySelectorAll('.conversation')].map(e => e.textContent)")
    good = [sample for sample in samples if not isinstance(sample, Rejected)]
    assert texts == ["".join(t for _, _, ms in runs(s.pieces) for _, t in ms) for s in good] and len(texts) == 5
    learned = driver.execute_script(
        "return [...document.querySelectorAll('section')].map(s => "
        "[...s.querySelectorAll('.conversation .supervised [title]')].map(e => e.title))"
    )
    for titles, sample in zip(learned, samples, strict=True):
        pieces = [] if isinstance(sample, Rejected) else [piece for piece in sample.pieces if piece.supervised]
        assert len(titles) == len(pieces)
        for title, piece in zip(titles, pieces, strict=True):
            assert re.search(r"ids? ([\d, ]*\d), supervised$", title)[1] == ", ".join(map(str, piece.ids))
    sizes = driver.execute_script("return [...document.images].map(i => [i.naturalWidth, i.naturalHeight])")
    assert sizes == [[30, 22], [28, 28]] * 4
    bars = driver.execute_script(
        "return [...document.querySelectorAll('.bar')].map("
        "bar => [bar, ...bar.children].map(e => e.getBoundingClientRect().width))"
    )
    longest = max(sample.tokens for sample in good)
    for (whole, *widths), sample in zip(bars, good, strict=True):
        parts = (sample.supervised, sample.slots, sample.tokens - sample.supervised - sample.slots)
        assert widths == pytest.approx([whole * part / longest for part in parts], abs=1)


def test_choice_of_records(tmp_path):
    part = open_unscanned("it", SourceConfig(path=str(write(tmp_path / "a.jsonl", *[talk("q", "a")] * 20))))
    assert choose_records(part, 3) == [0, 1, 2]
    assert choose_records(part, 99) == list(range(20))
    some = choose_records(part, 5, seed=0)
    assert some == choose_records(part, 5, seed=0) == sorted(set(some)) != choose_records(part, 5, seed=1)
    assert len(some) == 5


def test_show_on_the_command_line(run, assistant_dir, tiny_records, tmp_path):
    show = ("data", "show", tiny_records, "--model", assistant_dir)
    status, out, err = run(*show)
    assert (status, err) == (0, "")
    assert out.count("template vicuna_v1") == 3 and "id pair" not in out
    assert re.findall(r"id (\w+)", run(*show, "--records", "3,0")[1]) == ["pair", "text"]
    by_chance = run(*show, "--random", "--number", "2", "--seed", "3")[1]
    assert by_chance == run(*show, "--random", "--number", "2", "--seed", "3")[1]
    assert run(*show, "--template", "llama_2", "--max-length", "400", "--number", "1")[1].count("llama_2") == 1
    page = tmp_path / "new" / "page.html"
    assert run(*show, "--html", page)[:2] == (0, f"{page}\n")
    assert page.read_text().count("<section>") == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--records", "4"), "there is no record 4: "),
        (("--records", "-1"), "there is no record -1: "),
        (("--records", "a"), "expected numbers as 0,5,7, found 'a'"),
        (("--number", "0"), "expected a number from 1 on, found '0'"),
        (("--records", "0", "--number", "1"), "not allowed with argument"),
        (("--records", "0", "--random"), "--records names the records, --random takes any"),
        (("--only", "x"), "there is no source 'x'"),
        (("--template", "x"), "unknown conversation template 'x'"),
    ],
)
def test_mistakes_are_one_line(run, assistant_dir, tiny_records, words, message):
    status, out, err = run("data", "show", tiny_records, "--model", assistant_dir, *words)
    assert (status, out) == (2, "")
    assert message in err and err.startswith("error: ") and err.count("\n") == 1


def test_a_model_is_needed(run, tiny_records):
    status, _, err = run("data", "show", tiny_records)
    assert status == 2 and "--model DIR" in err


def test_a_runs_mixture_is_shown_with_each_sources_template(run, assistant_dir, tiny_records, tmp_path):
    config = {
        "run_dir": str(tmp_path / "run"),
        "model": str(assistant_dir),
        "data": {
            "sources": {
                "chat": {"path": str(tiny_records)},
                "brief": {"path": str(write(tmp_path / "b.jsonl", talk("Q", "A", id="b"))), "template": "llama_2"},
            }
        },
        "trainable": {"projector": "full"},
        "optimizer": {"lr": 1e-3},
        "steps": 1,
        "batch_size": 1,
    }
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(config))
    status, out, err = run("data", "show", path, "--number", "1")
    assert (status, err) == (0, "")
    assert re.findall(r"id (\w+)  template (\w+)", out) == [("text", "vicuna_v1"), ("b", "llama_2")]
    out = run("data", "show", path, "--only", "brief")[1]
    assert re.findall(r"id (\w+)  template (\w+)", out) == [("b", "llama_2")]
    assert run("data", "show", path, "--image-root", tmp_path)[0] == 2
    for fit in (None, "pad"):
        path.write_text(json.dumps({**config, "objective": {"fit": fit}}))
        run("data", "show", path, "--number", "2", "--html", tmp_path / "page.html")
        assert f"28x28 {fit or 'shortest-edge-crop'}" in (tmp_path / "page.html").read_text()
