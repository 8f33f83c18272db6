"""Class folders are a data set: records whose caption is the class."""

import pytest

from mmchat.data.labelled_images import read_labelled
from mmchat.data.sources import open_source
from mmchat.errors import UserError
from mmchat.images import find_images
from mmchat.inference.jobs.sources import Options, Sources
from tests.data.doctoring import command


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


@pytest.mark.parametrize("junk", ["__MACOSX/cat", ".ipynb_checkpoints", "@eaDir", ".git/objects", "cat/.thumbnails"])
def test_junk_is_left_out(folders, make_image, junk):
    (folders / junk).mkdir(parents=True)
    for name in (f"{junk}/x.png", "cat/._z.PNG", "._stray.png"):
        make_image().save(folders / name)
    assert [record.id for record in open_source(folders)] == ["cat/z.PNG", "dog/b.png", "dog/deeper/a.jpg"]


def test_links_are_followed_without_loops(folders, make_image, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    make_image().save(elsewhere / "far.png")
    (folders / "photos").symlink_to(elsewhere)
    (folders / "cat" / "more").symlink_to(elsewhere)
    (folders / "cat" / "far2.png").symlink_to(elsewhere / "far.png")
    (folders / "dog" / "deeper" / "loop").symlink_to(folders / "dog")
    (elsewhere / "self").symlink_to(elsewhere)
    records = list(open_source(folders))
    expected = ["cat/far2.png", "cat/more/far.png", "cat/z.PNG", "dog/b.png", "dog/deeper/a.jpg", "photos/far.png"]
    assert [record.id for record in records] == expected
    assert all(record.images[0].open().size == (30, 22) for record in records)
    assert find_images([folders / "cat"])[0].name == "far2.png"
    named = [str(item.file) for item in Sources([str(folders)], Options())]
    assert [path.rpartition("images/")[2] for path in named] == expected


@pytest.mark.parametrize("ending", [".jfif", ".JPEG", ".AVIF", ".jp2", ".pgm", ".TIFF"])
def test_every_ending_of_the_list_is_taken(folders, make_image, ending):
    image = make_image().convert("L") if ending == ".pgm" else make_image()
    image.save(folders / "cat" / f"new{ending}")
    assert len(open_source(folders)) == 4


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["train/cat/1.png", "val/cat/1.png"], "holds the splits train, val, not one folder per class; name "),
        (["Train/a/1.png", "test2017/b/1.png", "other/1.png"], "holds the splits Train, test2017"),
        (["training_set/1.png", "validation/2.png"], "holds the splits training_set, validation"),
    ],
)
def test_splits_are_no_classes(tmp_path, make_image, names, words):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        make_image().save(tmp_path / name)
    with pytest.raises(UserError, match=words):
        open_source(tmp_path)


def test_a_class_may_be_called_test(tmp_path, make_image):
    for name in ("test", "pilot"):
        (tmp_path / name).mkdir()
        make_image().save(tmp_path / name / "1.png")
    assert len(open_source(tmp_path)) == 2


def test_other_files_are_counted(folders, tmp_path, capsys):
    (folders / "dog" / "scan.pdf").write_text("no image")
    _, _, _ = command(capsys, folders, "--out", tmp_path / "check", "--workers", 0)
    report = (tmp_path / "check" / "report.md").read_text()
    assert "2 files that are not images (" in report and ".txt 1" in report and ".pdf 1" in report


def test_mistakes(folders, make_image):
    (folders / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no image; remove the folder, or add images"):
        open_source(folders)
    make_image().save(folders / "stray.png")
    with pytest.raises(UserError, match=r"holds 1 images outside its class folders \(stray.png\)"):
        open_source(folders)
