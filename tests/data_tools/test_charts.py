"""Charts: the label is what the chart shows, and the answers to questions are correct."""

import ast
import random
import re
from dataclasses import replace

import make_charts
import make_negatives
import pytest
from synthetic.charts import KINDS, ChartMaker, draw_chart
from synthetic.fonts import SHIPPED, find_faces
from synthetic.label_check import DefectError
from synthetic.tables import ABSENT, Table, excerpt, questions, random_table, read_tables

from mmchat.data.sources import open_source
from mmchat.errors import UserError
from mmchat.files import read_json_lines

CSV = "Year,Apples,Pears\n" + "".join(f"{1990 + at},{at * 3 + 1},{100 - at}.5\n" for at in range(20))


@pytest.fixture(scope="module")
def maker():
    return ChartMaker(0, [], find_faces([SHIPPED]), (320, 240), 5)


@pytest.fixture
def table():
    return Table("Rents", ABSENT, "City", "EUR", {"": {"Oslo": 12.5, "Lima": 7, "Graz": 9}})


def test_the_label_of_a_chart_is_a_python_dict(maker):
    seen = set()
    for number in range(5):
        sample = maker(number)
        (record,) = sample.records["tables"]
        label = ast.literal_eval(record["conversations"][1]["value"])
        assert list(label) == ["title", "source", "x_title", "y_title", "values"] and len(label["values"]) >= 2
        assert record["conversations"][0]["value"] == (
            "<image>\nConvert the key information of the chart to a python dict:"
        )
        assert sample == maker(number)
        seen.add(record["kind"])
    assert len(seen) > 1


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_cut_title_is_a_defect(kind, table, maker):
    face, table = maker.faces[0], replace(table, x_title=ABSENT, y_title=ABSENT)
    assert draw_chart(random.Random(0), kind, table, face, (320, 240), "")[:4] == b"\x89PNG"
    with pytest.raises(DefectError, match=r"chart 7: 'Rents.*' leaves the image"):
        draw_chart(random.Random(0), kind, replace(table, title="Rents " * 30), face, (320, 240), "chart 7")


def test_a_missing_text_is_a_defect(table, maker):
    with pytest.raises(DefectError, match="chart 7: 'City' is in the label, but not drawn"):
        draw_chart(random.Random(0), "pie", table, maker.faces[0], (320, 240), "chart 7")


def test_answers_are_correct_by_an_independent_computation():
    kinds = set()
    for seed in range(300):
        rng = random.Random(seed)
        table = random_table(rng)
        for question, answer in questions(rng, table):
            series = next((name for name in table.values if name and f" of {name}" in question), "")
            values = table.values[series]
            rows = [row for row in values if re.search(rf"\b{row}\b", question)]
            if "difference" in question:
                true = abs(values[rows[0]] - values[rows[1]])
                assert float(answer) == pytest.approx(true, rel=1e-4, abs=1e-6)
            elif "value" in question and "for" in question:
                assert float(answer) == values[rows[0]]
            elif "How many" in question:
                assert int(answer) == len(values)
            else:
                best = max(values.values()) if "largest" in question else min(values.values())
                assert [row for row, value in values.items() if value == best] == [answer]
            kinds.add(question.split()[0] + question.split()[3])
    assert len(kinds) >= 5


def test_tables_from_csv(tmp_path):
    (tmp_path / "fruit_harvest.csv").write_text(CSV)
    (whole,) = read_tables(tmp_path)
    assert whole.title == "fruit harvest" and whole.values["Pears"]["1990"] == 100.5 and whole.x_title == "Year"
    for seed in range(20):
        part = excerpt(random.Random(seed), whole)
        rows = part.rows
        assert 3 <= len(rows) <= 12 and rows == [str(int(rows[0]) + at) for at in range(len(rows))]
        for name, values in part.values.items():
            column = whole.values[name or part.y_title]
            assert values == {row: column[row] for row in rows}
    for text, told in (
        (CSV.replace("1993,10", "1993,ten"), r"line 5: Apples is 'ten', expected a number"),
        (CSV.replace("1993,10", "1993,nan"), r"line 5: Apples is 'nan', expected a number"),
        (CSV.replace("1993,10,", "1993,10,,"), r"line 5: expected 3 cells"),
        (CSV.replace("1993", "1992"), r"line 5: expected 3 cells and a unique row name"),
        ("Year,Apples\n1,2\n", "at least three rows"),
    ):
        (tmp_path / "fruit_harvest.csv").write_text(text)
        with pytest.raises(UserError, match=told):
            read_tables(tmp_path)


def test_a_table_with_too_long_names_is_a_user_error(table, maker):
    long = replace(table, title="Rents " * 30)
    with pytest.raises(UserError, match=r"chart 3 of seed 0: 'Rents.*shorten the texts of your tables"):
        replace(maker, tables=[long])(3)


def test_the_scripts_write_readable_data(tmp_path):
    small = ["--count", "2", "--workers", "0", "--seed", "3"]
    make_charts.main(["--out", str(tmp_path / "charts"), "--width", "320", "--height", "240", *small])
    assert len(open_source(str(tmp_path / "charts" / "tables.jsonl"))) == 2
    assert len(open_source(str(tmp_path / "charts" / "questions.jsonl"))) == 4
    make_negatives.main(["--out", str(tmp_path / "nature"), "--size", "64", *small])
    records = read_json_lines(tmp_path / "nature" / "negatives.jsonl")
    assert len(records) == 2 and {r["conversations"][1]["value"] for r in records} == {"It's an image of nature."}
    assert (tmp_path / "charts" / "preview.png").exists() and (tmp_path / "nature" / "preview.png").exists()
