"""Rows of CSV and TSV: a quote that does not close properly is text, and takes in no other row."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from mmchat.data.delimited_table import CsvTable
from mmchat.data.records import Record, Rejected
from mmchat.data.sources import open_source
from mmchat.errors import UserError
from tests.data.doctoring import command, scene


@pytest.fixture
def rows(tmp_path):
    """rows(text, suffix) -> the cells of each row, or the kind under which it is rejected."""

    def read(text, suffix="tsv"):
        path = tmp_path / f"a.{suffix}"
        path.write_text("image\tcaption\n".replace("\t", "\t" if suffix == "tsv" else ",") + text, newline="")
        table = CsvTable(str(path))
        found = [table.row(number)[1] for number in range(len(table))]
        return [row.kind if isinstance(row, Rejected) else tuple(row.values()) for row in found]

    return read


THREE = "b.png\tB\nc.png\tC\nd.png\tD\n"
READ = [("b.png", "B"), ("c.png", "C"), ("d.png", "D")]


@pytest.mark.parametrize(
    "caption",
    [
        '"a dog said',
        '"a dog" said',
        '"a" and "b',
        '""',
        '6" nails',
        '"he said "yes" and left"',
    ],
)
@pytest.mark.parametrize("place", [0, 1, 3])
def test_an_unbalanced_quote_is_text(rows, caption, place):
    lines = THREE.splitlines(keepends=True)
    lines.insert(place, f"a.png\t{caption}\n")
    expected = [*READ]
    expected.insert(place, ("a.png", caption) if caption != '""' else ("a.png",))
    assert rows("".join(lines)) == expected


def test_an_unbalanced_quote_of_a_csv_is_text(rows):
    text = THREE.replace("\t", ",")
    assert rows('a.png,"a dog said\n' + text, "csv") == [("a.png", '"a dog said'), *READ]
    assert rows(text + 'a.png,"a dog said', "csv") == [*READ, ("a.png", '"a dog said')]
    assert rows('a.png,"a, ""b""\nc"\n' + text, "csv") == [("a.png", 'a, "b"\nc'), *READ]


def test_quoted_cells_of_a_tsv_are_read(rows):
    assert rows('a.png\t"a ""b""\nc\n\nd"\n' + THREE) == [("a.png", 'a "b"\nc\n\nd'), *READ]
    assert rows('a.png\t"one\ttwo"\r\n' + THREE) == [("a.png", "one\ttwo"), *READ]
    assert rows('"a.png"\t"A"\n\n' + THREE) == [("a.png", "A"), *READ]


def test_a_cell_with_line_break_and_tab_is_ambiguous(rows):
    assert rows('a.png\t"one\ntwo\tthree"\n' + THREE) == ["ambiguous_quote", ("two", 'three"'), *READ]
    assert rows('a.png\t"one\n' + THREE + 'e.png\tfive"\n') == ["ambiguous_quote", *READ, ("e.png", 'five"')]


def test_cells_of_any_length(rows):
    long = "x" * 300_000  # the csv module refuses more than 131,072 characters
    assert rows(f'a.png\t"{long}"\nb.png\t{long}\n') == [("a.png", long), ("b.png", long)]


def cell_of(side: int) -> str:
    """A PNG of noise as bare base64, which is not compressed: side x side x 4 characters."""
    file = io.BytesIO()
    noise = np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize("header", ["index\timage\tquestion\tanswer", "question\tanswer\timage\tindex"])
def test_the_image_of_another_row(tmp_path, header):
    cells = [cell_of(230), cell_of(40)]
    assert len(cells[0]) > 200_000
    shown = [(7, cells[0]), (8, cells[1]), (9, "7"), (10, "8"), (11, "9"), (12, "99"), (13, "[]")]
    names = header.split("\t")
    rows = [{"index": n, "image": image, "question": f"Q{n}", "answer": f"A{n}"} for n, image in shown]
    text = "\n".join("\t".join(str(row[name]) for name in names) for row in rows)
    (tmp_path / "a.tsv").write_text(f"{header}\n{text}\n")
    records = list(open_source(tmp_path / "a.tsv"))
    assert [record.images[0].open().size for record in records[:4]] == [(230, 230), (40, 40), (230, 230), (40, 40)]
    assert [record.answers for record in records[:4]] == [["A7"], ["A8"], ["A9"], ["A10"]]
    assert "index 9, which holds '7'" in records[4].reason
    assert records[5].kind == "missing_image"  # 99 is no row, so it is a file
    assert records[6].images == ()


def test_a_number_is_a_file_where_no_row_has_it(tmp_path):
    scene(1).save(tmp_path / "3", "PNG")
    (tmp_path / "a.tsv").write_text("index\timage\tquestion\tanswer\n1\t3\tQ\tA\n")
    (record,) = open_source(tmp_path / "a.tsv")
    assert record.images[0].open().size == scene(1).size


PUBLISHED = {
    "CC3M": 'a dog said\thttp://e.org/a.jpg\nfour "quoted" words\thttp://e.org/b?x=1\n',
    "CC12M": 'https://e.org/a.jpg\ta dog said\nhttp://e.org/b?x=1\tfour "quoted" words\n',
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_lists_without_a_header(tmp_path, name):
    path = tmp_path / "Train.tsv"
    path.write_text(PUBLISHED[name])
    records = list(open_source(path, allow_http=True))
    assert [record.answers[0] for record in records] == ["a dog said", 'four "quoted" words']
    assert [record.images[0].url[-5:] for record in records] == ["a.jpg", "b?x=1"]
    refused = list(open_source(path))
    assert [record.kind for record in refused] == ["not_fetched"] * 2
    assert all("set allow_http to fetch it, or download it" in record.reason for record in refused)


def test_paths_without_a_header(tmp_path):
    scene(1).save(tmp_path / "a.png")
    (tmp_path / "a.csv").write_text("a.png,one\na.png,two\n")
    assert [record.answers[0] for record in open_source(tmp_path / "a.csv")] == ["one", "two"]


@pytest.mark.parametrize("line", ["a.png\tone\t0.3", "a.png\tb.png", "1\thttp://e.org/a\tone"])
def test_a_first_line_that_is_a_row_is_named(tmp_path, line):
    (tmp_path / "a.tsv").write_text(f"{line}\n" * 3)
    with pytest.raises(UserError, match=r"has no header: its first line holds .* write the names of the columns"):
        open_source(tmp_path / "a.tsv")


def test_the_doctor_names_an_ambiguous_quote(tmp_path, capsys):
    for name in "ab":
        scene(ord(name)).save(tmp_path / f"{name}.png")
    path = tmp_path / "a.tsv"
    path.write_text('image\tcaption\na.png\t"A dog\nb.png\tsaid"\nb.png\t"a cat\n')
    first, second, third = open_source(path)
    assert first.kind == "ambiguous_quote" and "either one cell with line breaks and tabs" in first.reason
    assert isinstance(second, Record) and third.answers == ['"a cat']
    status, out, _ = command(capsys, path, "--out", tmp_path / "check", "--workers", 0)
    assert status == 1 and "ambiguous quote" in out
