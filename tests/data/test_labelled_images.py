"""Images and their classes, from folders and tables. Errors name the place."""

import json

import pytest

from mmchat.data.labelled_images import parse_class_names, read_class_names, read_labelled
from mmchat.errors import UserError


@pytest.fixture
def folders(tmp_path, make_image):
    root = tmp_path / "data"
    for place in ("dog/b.png", "dog/a.png", "cat/deep/c.png", "cat/notes.txt"):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        make_image().save(root / place) if place.endswith("png") else (root / place).write_text("x")
    return root


def test_a_folder_for_each_class(folders, tmp_path):
    data = read_labelled(folders)
    assert data.classes == ["cat", "dog"] and data.targets == [0, 1, 1]
    assert [p.name for p in data.images] == [str(folders / f) for f in ("cat/deep/c.png", "dog/a.png", "dog/b.png")]
    assert data.images[0].open().size == (30, 22)
    # The user's order, and words of their own; a class without images is still one.
    (tmp_path / "names.json").write_text('{"dog": "a hound", "wolf": "a wolf", "cat": "a cat"}')
    data = read_labelled(folders, names=read_class_names(tmp_path / "names.json"))
    assert data.classes == ["a hound", "a wolf", "a cat"] and data.targets == [2, 0, 0]


def test_tables(folders, tmp_path):
    (folders / "t.csv").write_text("image,label\ndog/a.png,dog\ncat/deep/c.png,cat\n")
    assert read_labelled(folders / "t.csv").targets == [1, 0]
    rows = [{"image": "dog/a.png", "label": 1}, {"image": "cat/deep/c.png", "label": 0}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = read_labelled(tmp_path / "t.jsonl", folders, parse_class_names(["cat", "dog"], "--labels"))
    assert data.targets == [1, 0] and data.images[0].open().size == (30, 22)
    with pytest.raises(UserError, match=r"t\.jsonl:1: the label is a number; name the classes in order"):
        read_labelled(tmp_path / "t.jsonl", folders)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("image,label\ndog/a.png,wolf\n", r"row 1: label 'wolf' is none of the 2 named classes \(cat, dog\)"),
        ("image,label\ndog/a.png,\n", "row 1: expected one of label, class, category, found none of them"),
        ("image,label,class\ndog/a.png,cat,cat\n", "expected one of label, class, category, found label, class"),
        ("picture,label\ndog/a.png,cat\n", "row 1: has no image; looked for image, .* found picture, label"),
        ("image,label\ndog/x.png,cat\n", "row 1: image .*x.png does not exist"),
        ("image,label\n", "holds no labelled image"),
    ],
)
def test_mistakes_in_a_table(folders, rows, message):
    (folders / "t.csv").write_text(rows)
    with pytest.raises(UserError, match=message):
        read_labelled(folders / "t.csv", names=parse_class_names(["cat", "dog"], "--labels"))


def test_mistakes_in_folders(folders, tmp_path, make_image):
    with pytest.raises(UserError, match=r"c\.png: label 'cat' is none of the 1 named classes \(dog\)"):
        read_labelled(folders, names=parse_class_names(["dog"], "--labels"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no data file"):
        read_labelled(tmp_path / "empty")
    (folders / "wolf").mkdir()
    with pytest.raises(UserError, match="wolf holds no image; remove the folder, or add images"):
        read_labelled(folders)
    make_image().save(folders / "stray.png")
    with pytest.raises(UserError, match=r"holds 1 images outside its class folders \(stray.png\)"):
        read_labelled(folders)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat\ndog\ncat\n", "names 'cat' more than once"),
        ("\n\n", "names no label"),
        (None, "does not exist"),
    ],
)
def test_mistakes_in_labels(tmp_path, text, message):
    if text is not None:
        (tmp_path / "labels.txt").write_text(text)
    with pytest.raises(UserError, match=rf"labels\.txt {message}"):
        read_class_names(tmp_path / "labels.txt")


def test_labels_of_a_file(tmp_path):
    (tmp_path / "labels.txt").write_text("\ufeffa cat\n\n a dog \n", encoding="utf-8")
    assert read_class_names(tmp_path / "labels.txt").names == ("a cat", "a dog")
    with pytest.raises(UserError, match="--labels: label 2 of 3 is empty"):
        parse_class_names(["a", "", "b"], "--labels")
    (tmp_path / "labels.json").write_text('{"n01": "a cat", "n02": "a cat"}')
    with pytest.raises(UserError, match=r"labels\.json names 'a cat' more than once"):
        read_class_names(tmp_path / "labels.json")
    (tmp_path / "labels.json").write_text('["a cat"]')
    with pytest.raises(UserError, match="must hold an object of label: name, found list"):
        read_class_names(tmp_path / "labels.json")
