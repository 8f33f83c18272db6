"""How a target is chosen, refused and written, with formats made for the test."""

from dataclasses import dataclass

import pytest

from mmchat.conversion import checks, export_model, exporting
from mmchat.errors import UserError
from mmchat.model.directory import load_assistant


@dataclass(frozen=True)
class Target:
    name: str
    reasons: tuple[str, ...] = ()
    transformers_class: str | None = None
    description: str = "another program"
    broken: bool = False
    content: str = "plain"

    def refusals(self, config, processor=None):
        return list(self.reasons)

    def export(self, model, processor):
        return self

    def write(self, directory):
        directory.mkdir()
        (directory / "content").write_text(self.content)

    def check(self, directory, samples, processor):
        assert (directory / "content").exists() and len(samples) == 4
        if self.broken:
            raise RuntimeError("other logits")
        return ["compared"]


@pytest.fixture
def targets(monkeypatch):
    def register(*targets):
        monkeypatch.setattr(exporting, "TARGETS", targets)

    return register


def test_hf_is_the_class_that_can(targets, assistant_dir, tmp_path):
    targets(Target("gguf"), Target("a", ("it is blue",), "A"), Target("b", (), "B", "transformers' B"))
    assert export_model(assistant_dir, "hf", tmp_path / "out") == ["transformers' B", "compared"]
    assert (tmp_path / "out" / "content").read_text() == "plain"
    assert "transformers' B opens it" in (tmp_path / "out" / "README.md").read_text()


def test_every_reason_and_another_format_are_named(targets, assistant_dir, tmp_path):
    targets(Target("a", ("it is blue", "it is round"), "A"), Target("b", ("1", "2", "3"), "B"), Target("gguf"))
    with pytest.raises(UserError, match=r"it is blue; it is round \(nor can b: .*`--to gguf` can"):
        export_model(assistant_dir, "hf", tmp_path / "out")
    targets(Target("a", ("it is blue",)), Target("b", ("1",)))
    with pytest.raises(UserError, match="it is blue; no other format"):
        export_model(assistant_dir, "a", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_unknown_formats_and_options_are_refused(targets, assistant_dir, tmp_path):
    targets(Target("a"))
    with pytest.raises(UserError, match="no export format 'b'; known: hf, a"):
        export_model(assistant_dir, "b", tmp_path / "out")
    with pytest.raises(UserError, match="export to a has no option 'colour'"):
        export_model(assistant_dir, "a", tmp_path / "out", colour="blue")


def test_options_of_a_format(targets, assistant_dir, tmp_path):
    targets(Target("a"))
    export_model(assistant_dir, "a", tmp_path / "out", content="optional")
    assert (tmp_path / "out" / "content").read_text() == "optional"


def test_what_computes_something_else_is_never_written(targets, assistant_dir, tmp_path):
    targets(Target("a", broken=True))
    with pytest.raises(RuntimeError, match="other logits"):
        export_model(assistant_dir, "a", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def samples(assistant_dir):
    return checks.reference_samples(*load_assistant(assistant_dir))


def test_samples_have_answers_and_margins(samples):
    assert [(sample.name, len(sample.images)) for sample in samples] == [
        ("1 image", 1),
        ("2 images", 2),
        ("text", 0),
        ("2 rounds", 1),
    ]
    for sample in samples:
        assert len(sample.answer) == len(sample.margins) == checks.NEW_TOKENS
        first = sample.logits[0, -1].topk(2).values
        assert sample.margins[0] == pytest.approx((first[0] - first[1]).item(), abs=1e-5)
        assert sample.logits.shape[:2] == sample.inputs["input_ids"].shape


def test_another_answer_is_refused_unless_the_best_two_tie(samples):
    sample = samples[0]
    checks.refuse_other_answer(sample, sample.answer, "it")
    answer = [*sample.answer[:3], sample.answer[3] + 1, *sample.answer[4:]]
    with pytest.raises(RuntimeError, match="at position 3"):
        checks.refuse_other_answer(sample, answer, "it", tie=sample.margins[3] / 2)
    checks.refuse_other_answer(sample, answer, "it", tie=sample.margins[3] * 2)
