"""Rows of CSV and TSV: a quote that does not close properly is text, and takes in no other row."""

import pytest

from mmchat.data.records import Record, Rejected
from mmchat.data.sources import open_source
from mmchat.data.text_files import CsvTable
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
