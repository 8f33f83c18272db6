"""An index is what the model says of each image, is brought up to date, and survives being killed."""

import os
import sqlite3

import numpy as np
import pytest

from mmchat.contrastive.embedding import Embedder
from mmchat.contrastive.search import Hit, Index, index_folder, write_sheet
from mmchat.errors import UserError
from mmchat.images import load_image
from tests.clip_kinds import write_clip


@pytest.fixture(scope="module")
def embedder(make_tower, data_dir, tmp_path_factory):
    words = data_dir / "tokenizers" / "llama_like_legacy_false"
    return Embedder.open(write_clip(make_tower(), words, tmp_path_factory.mktemp("clip") / "model"))


@pytest.fixture
def folder(tmp_path, make_image):
    root = tmp_path / "images"
    (root / "deep").mkdir(parents=True)
    for number in range(7):
        make_image(number).save(root / ("deep" if number % 2 else ".") / f"{number}.png")
    (root / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    return root


def counts(summary):
    return summary.added, summary.kept, summary.removed, [path.name for path, _ in summary.unreadable]


def test_the_nearest_by_cosine(embedder, folder, tmp_path):
    out = tmp_path / "index"
    assert counts(index_folder(embedder, "clip", folder, out, batch_size=3)) == (7, 0, 0, ["broken.jpg"])
    index = Index(out)
    index.check(embedder)
    assert index.checkpoint == "clip" and len(index.paths) == 7
    query = embedder.texts(["a red house"])[0]
    similarities = embedder.images([load_image(path) for path in index.paths]) @ query
    hits = index.nearest(query, 4)
    assert [hit.path for hit in hits] == [index.paths[i] for i in np.argsort(-similarities)[:4]]
    assert [hit.similarity for hit in hits] == pytest.approx(sorted(similarities, reverse=True)[:4], abs=1e-5)
    # An image finds itself; no more images come than there are.
    found = index.nearest(embedder.images([load_image(folder / "deep" / "3.png")])[0], 100)
    assert found[0].path == folder / "deep" / "3.png" and found[0].similarity == pytest.approx(1, abs=1e-5)
    assert len(found) == 7


def test_brought_up_to_date(embedder, folder, tmp_path, make_image, monkeypatch):
    out = tmp_path / "index"
    index_folder(embedder, "clip", folder, out)
    assert counts(index_folder(embedder, "clip", folder, out)) == (0, 7, 0, ["broken.jpg"])
    make_image(50, width=44).save(folder / "0.png")
    (folder / "2.png").unlink()
    make_image(51).save(folder / "broken.jpg")
    assert counts(index_folder(embedder, "clip", folder, out)) == (2, 5, 1, [])
    index = Index(out)
    images = [load_image(path) for path in index.paths]
    np.testing.assert_allclose(index.vectors, embedder.images(images), atol=1e-5)


def test_goes_on_where_it_was_killed(embedder, folder, tmp_path, monkeypatch):
    out = tmp_path / "index"
    looked = []
    original = Embedder.images

    def images(self, refs):
        looked.append(len(refs))
        if len(looked) == 4:  # the model's probe and two batches came before
            raise KeyboardInterrupt
        return original(self, refs)

    monkeypatch.setattr(Embedder, "images", images)
    with pytest.raises(KeyboardInterrupt):
        index_folder(embedder, "clip", folder, out, batch_size=2)
    monkeypatch.undo()
    kept = len(Index(out).paths)
    assert 2 <= kept <= 4
    assert counts(index_folder(embedder, "clip", folder, out)) == (7 - kept, kept, 0, ["broken.jpg"])


def test_file_names_of_any_bytes(embedder, folder, tmp_path, make_image):
    make_image(60).save(tmp_path / "plain.png")
    strange = os.fsdecode(b"caf\xe9 <b>.png")
    (tmp_path / "plain.png").rename(folder / strange)
    index_folder(embedder, "clip", folder, tmp_path / "index")
    assert folder / strange in Index(tmp_path / "index").paths
    write_sheet(tmp_path / "sheet.html", "a <i>text</i>", [Hit(folder / strange, 0.5), Hit(folder / "gone.png", 0.1)])
    page = (tmp_path / "sheet.html").read_text()
    assert "caf\ufffd &lt;b&gt;.png" in page and "<b>.png" not in page
    assert "a &lt;i&gt;text&lt;/i&gt;" in page and "gone.png does not exist" in page
    assert page.count("data:image/png;base64,") == 1 and "http" not in page


def test_mistakes(embedder, folder, tmp_path, make_tower, data_dir):
    out = tmp_path / "index"
    with pytest.raises(UserError, match="index does not exist; make it with `mmchat clip search index"):
        Index(out)
    index_folder(embedder, "clip", folder / "deep", out)
    with pytest.raises(UserError, match=r"is an index of .*deep, not of .*images; choose another --out"):
        index_folder(embedder, "clip", folder, out)
    words = data_dir / "tokenizers" / "llama_like_legacy_false"
    other = Embedder.open(write_clip(make_tower(seed=5, backbone={"hidden_size": 40}), words, tmp_path / "other"))
    for use in (lambda: Index(out).check(other), lambda: index_folder(other, "other", folder / "deep", out)):
        with pytest.raises(UserError, match="was made by another model; index the folder again"):
            use()
    (tmp_path / "text").write_text("no data base " * 100)
    sqlite3.connect(tmp_path / "alien").execute("CREATE TABLE x (y)").connection.close()
    for name in ("text", "alien"):
        with pytest.raises(UserError, match="cannot be used as an index of images"):
            Index(tmp_path / name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no image found in"):
        index_folder(embedder, "clip", tmp_path / "empty", tmp_path / "new")
    assert not (tmp_path / "new").exists()
