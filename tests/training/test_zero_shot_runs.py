"""Zero-shot accuracy while a run goes: the same figures at every ZeRO stage and number of ranks, and written down."""

import json
import re
from pathlib import Path

import pytest

from mmchat.contrastive.embedding import Embedder
from mmchat.data.labelled_images import read_labelled
from mmchat.errors import UserError
from mmchat.evaluation.zero_shot import classify_labelled
from mmchat.settings import load_settings
from mmchat.training.config import RunConfig
from mmchat.training.objectives.contrastive import ContrastiveObjective
from mmchat.training.validation.zero_shot_accuracy import ZeroShotAccuracy
from tests.clip_kinds import write_classes, write_clip
from tests.launching import launch, metrics, run_ranks, write_config
from tests.training_fixtures import run_values

MODULES = ("towers", "text_encoder", "image_norm", "image_projection", "text_projection", "logit_scale")


@pytest.fixture(scope="module")
def ckpt(make_tower, data_dir, tmp_path_factory):
    words = data_dir / "tokenizers" / "llama_like_legacy_false"
    return write_clip(make_tower(), words, tmp_path_factory.mktemp("clip") / "model")


@pytest.fixture
def values(tmp_path, ckpt, make_image):
    """A contrastive run over four pairs, and 17 images of 7 classes to be told apart."""
    sizes = {name: 2 + number % 2 for number, name in enumerate(["cat", "dog", "house", "sun", "moon", "tree", "car"])}
    write_classes(tmp_path / "classes", make_image, sizes)
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "a cat"}]
    for number in range(4):
        make_image(number).save(tmp_path / f"{number}.png")
    records = [{"id": str(n), "image": f"{n}.png", "conversations": turns} for n in range(4)]
    (tmp_path / "records.json").write_text(json.dumps(records))
    values = run_values(tmp_path, ckpt, tmp_path / "records.json", steps=3, batch_size=4)
    values |= {"trainable": dict.fromkeys(MODULES, "full")}
    zero_shot = {"path": str(tmp_path / "classes"), "prompts": ["{}", "a {}"], "every": 2, "batch_size": 3}
    return values | {"objective": {"kind": "contrastive", "zero_shot": zero_shot}}


def expected(model: Path, values: dict, without: tuple[str, ...] = ()) -> dict[str, float]:
    data = read_labelled(values["objective"]["zero_shot"]["path"])
    keep = [i for i, image in enumerate(data.images) if image.name not in without]
    data = type(data)([data.images[i] for i in keep], [data.targets[i] for i in keep], data.classes)
    figures = classify_labelled(Embedder.open(model), data, values["objective"]["zero_shot"]["prompts"]).figures()
    return {f"zero_shot_{name}": figures[name][0] for name in ("top1", "top5", "mean_per_class")}


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_every_stage_gives_the_same(tmp_path, ckpt, values, ranks):
    broken = tmp_path / "classes" / "sun" / "1.png"
    broken.write_bytes(b"not an image")
    config = write_config(tmp_path / "run.yaml", **values)
    script = Path(__file__).parent / "zero_shot_of_stages.py"
    run_ranks(script, config, tmp_path / "out.json", ranks=ranks)
    found = json.loads((tmp_path / "out.json").read_text())
    before = expected(ckpt, values, without=(str(broken),))
    assert 0 < before["zero_shot_top1"] < before["zero_shot_top5"] < 1
    for stage in map(str, range(4)):
        assert [rejected for _, rejected in found[stage]] == [[str(broken)]] * 3
        assert found[stage][0][0] == pytest.approx(before)
        assert found[stage] == found["0"]
    assert found["0"][0] != found["0"][2]  # the steps in between moved the weights


@pytest.mark.slow
def test_a_run_writes_it_down(tmp_path, values):
    """At ZeRO 3, where the model's own weights are not there between forwards."""
    result = launch(write_config(tmp_path / "run.yaml", **values), "--distributed.zero_stage", "3")
    assert result.returncode == 0, result.stdout
    rows = metrics(tmp_path / "run")
    assert [row["step"] for row in rows if "zero_shot_top1" in row] == [2, 3]
    last = {key: value for key, value in rows[-1].items() if key != "step"}
    assert last == pytest.approx(expected(tmp_path / "run" / "model", values))
    assert f"{last['zero_shot_top1']:.1%}" in re.search(r"zero-shot top-1 +(\S+)", result.stdout)[1]


def test_mistakes_are_told_before_the_first_step(tmp_path, ckpt, values):
    path = write_config(tmp_path / "long.yaml", **values)
    config = load_settings(RunConfig, path, ["--objective.zero_shot.prompts", f'["{{}} {"word " * 40}"]'])
    with pytest.raises(UserError, match=r"the text .car word .*; shorten it"):
        ZeroShotAccuracy(config.objective.zero_shot, ContrastiveObjective(config))
    for prompts, message in (
        ("[a photo]", r"objective.zero_shot: prompt 'a photo' must hold \{\} once"),
        ("[]", "objective.zero_shot.prompts: List should have at least 1 item"),
    ):
        with pytest.raises(UserError, match=message):
            load_settings(RunConfig, path, ["--objective.zero_shot.prompts", prompts])
    with pytest.raises(UserError, match=r"belongs to kind contrastive, but objective.kind is assistant"):
        load_settings(RunConfig, path, ["--objective.kind", "assistant"])
