"""`mmchat clip ...`: what is printed and written is what the model says; a mistake is one line and status 2."""

import json

import numpy as np
import pytest
from PIL import Image

from mmchat.contrastive.embedding import Embedder
from mmchat.contrastive.prompts import GENERAL_PROMPTS
from mmchat.data.labelled_images import read_labelled
from mmchat.evaluation.zero_shot import class_embeddings, classify_labelled
from mmchat.images import load_image
from tests.clip_kinds import write_classes, write_clip


@pytest.fixture(scope="module")
def ckpt(make_tower, data_dir, tmp_path_factory):
    tokenizer = data_dir / "tokenizers" / "llama_like_legacy_false"
    return write_clip(make_tower(), tokenizer, tmp_path_factory.mktemp("clip") / "model")


@pytest.fixture(scope="module")
def classes(make_image, tmp_path_factory):
    return write_classes(tmp_path_factory.mktemp("classes"), make_image, {"cat": 3, "dog": 5, "house [x]": 2})


def slow_probabilities(ckpt, files, labels, prompts):
    """Class by class and prompt by prompt: float[N, C]."""
    embedder = Embedder.open(ckpt)
    images = np.stack([embedder.images([load_image(file)])[0] for file in files])
    means = []
    for label in labels:
        mean = sum(embedder.texts([prompt.format(label)])[0] for prompt in prompts) / len(prompts)
        means.append(mean / np.sqrt((mean**2).sum()))
    logits = np.exp(embedder.scale * images @ np.stack(means).T)
    return logits / logits.sum(axis=1, keepdims=True)


def test_classify(run, ckpt, classes, tmp_path):
    files = sorted(classes.glob("*/*.png"))
    arguments = ["clip", "classify", ckpt, *files, "--labels", "cat, a dog,house", "--batch-size", 3]
    prompts = ["a photo of a {}.", "one {} in the rain"]
    status, out, err = run(*arguments, "--prompts", prompts[0], "--prompts", prompts[1], "--json")
    assert (status, err) == (0, "")
    lines = [json.loads(line) for line in out.splitlines()]
    expected = slow_probabilities(ckpt, files, ["cat", "a dog", "house"], prompts)
    assert [line["path"] for line in lines] == list(map(str, files))
    for line, likely in zip(lines, expected, strict=True):
        assert list(line["labels"].values()) == pytest.approx(sorted(likely, reverse=True), abs=1e-4)
        assert line["labels"]["a dog"] == pytest.approx(likely[1], abs=1e-4)
    expected = slow_probabilities(ckpt, files[:1], ["cat", "a dog", "house"], GENERAL_PROMPTS)[0]
    status, out, _ = run(*arguments[:3], files[0], *arguments[-4:-2], "--ensemble", "--top", 2)
    assert status == 0 and out.splitlines()[0] == str(files[0]) and len(out.splitlines()) == 3
    assert [line.split()[-2 if "█" in line else -1] for line in out.splitlines()[1:]] == [
        f"{share:.1%}" for share in sorted(expected, reverse=True)[:2]
    ]


def test_classify_tells_what_it_could_not_read(run, ckpt, classes, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    arguments = ["clip", "classify", ckpt, tmp_path / "broken.jpg", "--labels", "cat,dog", "--json"]
    status, out, err = run(*arguments, classes / "cat")
    assert status == 0 and "error" in json.loads(out.splitlines()[0]) and len(out.splitlines()) == 4
    assert err == "1 of 4 images could not be read\n"
    status, _, err = run(*arguments)
    assert status == 2 and err.endswith("error: none of the images could be read\n")


def test_eval(run, ckpt, classes, tmp_path):
    status, out, _ = run("clip", "eval", ckpt, classes, "--out", tmp_path, "--prompts", "{}", "--batch-size", 4)
    assert status == 0
    data = read_labelled(classes)
    files = [image.name for image in data.images]
    likely = slow_probabilities(ckpt, files, data.classes, ["{}"])
    right = likely.argmax(axis=1) == data.targets
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["top1"] == right.mean() and (scores["images"], scores["classes"]) == (10, 3)
    assert scores["class/dog"] == right[3:8].mean() and "top5" not in scores
    assert scores["mean_per_class"] == pytest.approx(np.mean([right[:3].mean(), right[3:8].mean(), right[8:].mean()]))
    assert scores["top1/low"] < scores["top1"] < scores["top1/high"]
    assert f"{100 * scores['calibration_error']:.1f}" in out and "house [x]" in out
    mistakes = [json.loads(line) for line in (tmp_path / "mistakes.jsonl").read_text().splitlines()]
    assert [line["image"] for line in mistakes] == [file for file, hit in zip(files, right, strict=True) if not hit]
    assert mistakes[0]["taken_for"] == data.classes[likely[~right][0].argmax()]
    with Image.open(tmp_path / "confusion.png") as drawn:
        assert drawn.width > drawn.height > 500
    result = classify_labelled(Embedder.open(ckpt), data, ["{}"])
    counts = np.zeros((3, 3), int)
    for truth, guess in zip(data.targets, likely.argmax(axis=1), strict=True):
        counts[truth, guess] += 1
    assert np.array_equal(result.confusion(), counts)


def test_top5_and_a_class_without_images(ckpt, classes, tmp_path):
    (tmp_path / "labels.json").write_text(json.dumps({name: name for name in ["cat", "dog", "house [x]", *"uvwxyz"]}))
    from mmchat.data.labelled_images import read_class_names

    data = read_labelled(classes, names=read_class_names(tmp_path / "labels.json"))
    embedder = Embedder.open(ckpt)
    flat = classify_labelled(embedder, data).flat()
    assert flat["class/u"] is None and flat["top1"] <= flat["top5"] < 1
    vectors = class_embeddings(embedder, data.classes, GENERAL_PROMPTS)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_eval_retrieval(run, ckpt, classes, tmp_path):
    files = sorted(classes.glob("*/*.png"))
    captions = [f"{file.parent.name} {file.stem}" for file in files]
    captions[1] = captions[0]  # either image is right for it
    rows = [
        {"image": str(file.relative_to(classes)), "caption": text} for file, text in zip(files, captions, strict=True)
    ]
    rows.append({"image": rows[2]["image"], "caption": "another caption of the third"})
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = ["clip", "eval", ckpt, tmp_path / "c.jsonl", "--image-root", classes, "--retrieval"]
    assert run(*arguments, "--out", tmp_path)[0] == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    embedder = Embedder.open(ckpt)
    texts = list(dict.fromkeys(row["caption"] for row in rows))
    similar = embedder.texts(texts) @ embedder.images([load_image(file) for file in files]).T
    names = [str(file.relative_to(classes)) for file in files]
    right = np.array([[{"image": name, "caption": text} in rows for name in names] for text in texts])
    for k in (1, 5):
        found = np.argsort(-similar, axis=1)[:, :k]
        expected = np.take_along_axis(right, found, 1).any(axis=1).mean()
        assert scores[f"text_to_image/recall@{k}"] == pytest.approx(expected)
        found = np.argsort(-similar.T, axis=1)[:, :k]
        expected = np.take_along_axis(right.T, found, 1).any(axis=1).mean()
        assert scores[f"image_to_text/recall@{k}"] == pytest.approx(expected)
    assert run(*arguments, "--labels", "a,b")[2].startswith("error: --labels is for classes; --retrieval compares")


def test_search(run, ckpt, classes, tmp_path):
    index, sheet = tmp_path / "index", tmp_path / "sheet.html"
    status, out, _ = run("clip", "search", "index", classes, "--ckpt", ckpt, "--out", index)
    assert (status, out) == (0, f"10 added, 0 unchanged, 0 removed, 0 could not be read: {index}\n")
    status, out, err = run("clip", "search", "query", index, "a cat", "--top", 3, "--html", sheet)
    assert (status, err) == (0, "") and out.endswith(f"{sheet}\n")
    assert sheet.read_text().count("<figure>") == 3
    image = classes / "dog" / "2.png"
    status, out, _ = run("clip", "search", "query", index, "--image", image, "--ckpt", ckpt)
    assert status == 0 and "1.000" in next(line for line in out.splitlines() if " 1 " in line)
    status, _, err = run("clip", "search", "query", index, "a cat", "--image", image)
    assert (status, err) == (2, "error: what to look for? give a text, or --image IMAGE; one of them\n")


LONG = "word " * 40


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["classify", "CKPT", "CLASSES"], "which labels? name them with --labels a,b,c or --labels-file FILE"),
        (["classify", "CKPT", "CLASSES", "--labels", "a,b,a"], "--labels names 'a' more than once"),
        (["classify", "CKPT", "CLASSES", "--labels", "a,,b"], "--labels: label 2 of 3 is empty"),
        (["classify", "CKPT", "CLASSES", "--labels", "a", "--prompts", "a photo"], "must hold {} once"),
        (["classify", "CKPT", "CLASSES", "--labels", "a", "--prompts", "{}", "--ensemble"], "give one of them"),
        (["classify", "CKPT", "CLASSES", "--labels", LONG], "shorten it, or add --truncate"),
        (["classify", "CKPT", "EMPTY", "--labels", "a,b"], "no image found in EMPTY"),
        (["classify", "nowhere", "CLASSES", "--labels", "a,b"], "nowhere"),
        (["eval", "CKPT", "EMPTY"], "EMPTY holds no data file"),
        (["eval", "CKPT", "CLASSES", "--labels", "cat,dog"], "label 'house [x]' is none of the 2 named classes"),
        (["search", "query", "CKPT", "a cat"], "CKPT does not exist; make it with"),
        (["search", "index", "EMPTY", "--ckpt", "CKPT", "--out", "i"], "no image found in"),
    ],
)
def test_mistakes(run, ckpt, classes, tmp_path, monkeypatch, arguments, message):
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "CKPT").symlink_to(ckpt)
    (tmp_path / "CLASSES").symlink_to(classes)
    monkeypatch.chdir(tmp_path)
    status, out, err = run("clip", *arguments)
    assert (status, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1
    assert message in err
    if LONG in arguments:
        assert run("clip", *arguments, "--truncate")[0] == 0
