"""Class folders are a data set: records whose caption is the class."""

import pytest

from mmchat.data.labelled_images import read_labelled
from mmchat.data.sources import open_source
from mmchat.errors import UserError


@pytest.fixture
def folders(tmp_path, make_image):
    root = tmp_path / "images"
    for name in ("dog/b.png", "dog/deeper/a.jpg", "cat/z.PNG"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        make_image().save(root / name)
    (root / "dog" / "notes.txt").write_text("no image")
    return root


def test_records_come_class_by_class(folders):
    source = open_source(folders)
    records = list(source)
    assert [record.id for record in records] == ["cat/z.PNG", "dog/b.png", "dog/deeper/a.jpg"]
    assert [record.turns[-1].text for record in records] == ["cat", "dog", "dog"]
    assert records[2].images[0].open().size == (30, 22)
    digest = source.digest()
    (folders / "cat" / "z.PNG").write_bytes((folders / "cat" / "z.PNG").read_bytes() + b"\0")
    assert open_source(folders).digest() != digest


def test_labelled_images_are_read_from_there(folders):
    found = read_labelled(folders)
    assert (found.targets, found.classes) == ([0, 1, 1], ["cat", "dog"])


def test_mistakes(folders, make_image):
    (folders / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no image; remove the folder, or add images"):
        open_source(folders)
    make_image().save(folders / "stray.png")
    with pytest.raises(UserError, match=r"holds 1 images outside its class folders \(stray.png\)"):
        open_source(folders)
