"""Which loss goes with which dual encoder."""

import pytest

from mmchat.contrastive import DualEncoder, DualEncoderConfig
from mmchat.errors import UserError
from mmchat.training.objectives import _check_loss

TEXT = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 9}


@pytest.mark.parametrize("sigmoid", [False, True])
def test_a_model_made_for_the_other_loss_is_refused(make_tower, sigmoid):
    text = {**TEXT, "bos_token_id": 1, "eos_token_id": 2}
    model = DualEncoder(DualEncoderConfig([make_tower().config.to_dict()], text, 4, sigmoid=sigmoid))
    right, wrong = ("sigmoid", "softmax") if sigmoid else ("softmax", "sigmoid")
    _check_loss(right, model, "runs/clip")
    said = rf"loss is {wrong}, but the model in runs/clip has .*logit_bias.*; say {right}"
    with pytest.raises(UserError, match=said):
        _check_loss(wrong, model, "runs/clip")
