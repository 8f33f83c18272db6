"""Which loss goes with which dual encoder, and which squares of an image it learns from."""

import numpy as np
import pytest
from PIL import Image

from mmchat.contrastive import DualEncoder, DualEncoderConfig
from mmchat.contrastive.directory import init_clip
from mmchat.errors import UserError
from mmchat.settings import validate
from mmchat.training.config import RunConfig
from mmchat.training.objectives.contrastive import ContrastiveObjective, _check_loss
from mmchat.vision.transforms.augmentation import random_square_crop
from tests.training_fixtures import run_values

TEXT = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 9}


@pytest.mark.parametrize("sigmoid", [False, True])
def test_a_model_made_for_the_other_loss_is_refused(make_tower, sigmoid):
    text = {**TEXT, "bos_token_id": 1, "eos_token_id": 2}
    model = DualEncoder(DualEncoderConfig([make_tower().config.to_dict()], text, 4, sigmoid=sigmoid))
    right, wrong = ("sigmoid", "softmax") if sigmoid else ("softmax", "sigmoid")
    _check_loss(right, model, "runs/clip")
    said = rf"loss is {wrong}, but the model in runs/clip has .*logit_bias.*; set it to {right}"
    with pytest.raises(UserError, match=said):
        _check_loss(wrong, model, "runs/clip")


@pytest.mark.parametrize("size", [(30, 12), (12, 30), (20, 20)])
def test_random_squares_are_whole_and_come_from_anywhere(size):
    width, height = size
    numbered = np.arange(height * width, dtype=np.uint8).reshape(height, width)
    image = Image.fromarray(numbered)
    corners = set()
    for seed in range(200):
        square = np.asarray(random_square_crop(image, np.random.default_rng(seed)))
        assert square.shape == (min(size), min(size))
        ((top, left),) = np.argwhere(numbered == square[0, 0])[:1]
        corners.add((int(top), int(left)))
    assert len(corners) == max(size) - min(size) + 1


def test_only_images_of_a_step_are_cropped(make_tower, data_dir, tmp_path, make_image):
    text = {**TEXT, "max_position_embeddings": 16}
    init_clip(make_tower(), text, str(data_dir / "tokenizers" / "neox_like"), 4, "max", tmp_path / "clip")
    values = run_values(tmp_path, tmp_path / "clip", tmp_path / "data", objective="contrastive")
    values["trainable"] = {"towers": "full"}

    def objective(crop):
        return ContrastiveObjective(
            validate(RunConfig, values | {"objective": {"kind": "contrastive", "random_crop": crop}}, "test")
        )

    image, crops = make_image(0, 60, 20), objective(True)
    assert crops.augment([image], 3, None) == [image] and objective(False).augment is None
    seen = [np.asarray(crops.augment([image], number, step)[0]) for number, step in ((3, 7), (3, 7), (3, 8), (4, 7))]
    assert seen[0].shape == (20, 20, 3) and np.array_equal(seen[0], seen[1])
    assert not np.array_equal(seen[0], seen[2]) and not np.array_equal(seen[0], seen[3])
