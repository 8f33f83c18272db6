"""A few labels: as many of each class, seeded, and read back as a table of the same images."""

from collections import Counter

import pytest
from labelled_subset import main
from PIL import Image

from mmchat.data.sources import open_source
from mmchat.errors import UserError


@pytest.fixture
def folder(tmp_path):
    for label in ("a", "b", "c"):
        for number in range(6):
            path = tmp_path / "data" / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (2, 2)).save(path)
    return tmp_path / "data"


def drawn(folder, out, *words):
    main([str(folder), "--out", str(out), *words])
    return list(open_source(out, folder))


def test_shares_are_equal_and_seeded(folder, tmp_path):
    seven = drawn(folder, tmp_path / "7.jsonl", "--count", "7")
    assert all(record.images[0].open().size == (2, 2) for record in seven)
    counts = Counter(record.id.split("/")[0] for record in seven)
    assert sorted(counts.values()) == [2, 2, 3] and len({record.id for record in seven}) == 7
    ids = [
        [r.id for r in drawn(folder, tmp_path / "x.jsonl", "--count", "7", "--seed", str(seed))] for seed in range(8)
    ]
    assert ids[0] == [record.id for record in seven] and len(set(map(tuple, ids))) > 4
    favoured = {Counter(name.split("/")[0] for name in one).most_common(1)[0][0] for one in ids}
    assert len(favoured) > 1
    assert len(drawn(folder, tmp_path / "all.jsonl", "--count", "18")) == 18


def test_more_than_there_are(folder, tmp_path):
    with pytest.raises(UserError, match="7 of 'a' are needed, but there are 6; lower --count"):
        main([str(folder), "--count", "21", "--out", str(tmp_path / "x.jsonl")])
