"""What an objective does where there is little to do."""

import pytest
import torch

from mmchat.settings import load_settings
from mmchat.training.build_model import build_model
from mmchat.training.config import RunConfig
from tests.launching import write_config
from tests.training_fixtures import run_values, write_records


@pytest.mark.parametrize("trained", ["projectors", "language_model"])
def test_text_alone_can_always_be_learned_from_even_if_it_teaches_nothing(tmp_path, assistant_dir, trained):
    """With only the projector trained, no trained weight meets text without images; DeepSpeed wants a graph."""
    values = run_values(tmp_path, assistant_dir, write_records(tmp_path / "data", 2, images=0))
    values["trainable"] = {"towers": "frozen", "projectors": "frozen", "language_model": "frozen", trained: "full"}
    objective = build_model(load_settings(RunConfig, write_config(tmp_path / "run.yaml", **values), [])).objective
    turns = [{"from": "human", "value": "one two"}, {"from": "gpt", "value": "three"}]
    rendered = objective.processor.render(turns)
    batch = objective.collator([])
    batch.input_ids, batch.labels = torch.tensor([rendered.input_ids]), torch.tensor([rendered.labels])
    batch.attention_mask = torch.ones_like(batch.input_ids)
    loss = objective.loss_sum(objective.model, batch, images_on_any_rank=False)
    loss.backward()
    norms = [p.grad.norm() for p in objective.model.parameters() if p.grad is not None]
    assert norms and (sum(norms) > 0) == (trained == "language_model")
