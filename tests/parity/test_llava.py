"""An assistant with LLaVA's parts gives the logits, loss and gradients of transformers' LLaVA."""

import pytest
import torch
from side_by_side.parameter_names import our_name
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from mmchat.model.config import MMChatConfig
from mmchat.model.modeling import MMChatForConditionalGeneration
from mmchat.vision import TowerConfig

SLOT, TOKENS, IGNORED = 90, 16, -100
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 7,
}
TEXT = {
    "vocab_size": 100,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    theirs = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(**VISION),
            text_config=LlamaConfig(**TEXT),
            image_token_id=SLOT,
            image_seq_length=TOKENS,
            vision_feature_layer=-2,
            vision_feature_select_strategy="default",
            projector_hidden_act="gelu",
            tie_word_embeddings=False,
        )
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.1)
    tower = TowerConfig("clip_vit", VISION, layer=-2)
    config = MMChatConfig({"model_type": "llama", **TEXT}, [tower.to_dict()], ["mlp2x_gelu"], image_token_id=SLOT)
    ours = MMChatForConditionalGeneration(config).eval()
    ours.load_state_dict({our_name(name): weight.clone() for name, weight in theirs.state_dict().items()})
    return theirs, ours


def batch(images_per_row, padding):
    """Rows with these numbers of images; answers of three supervised tokens; padded to the longest."""
    generator = torch.Generator().manual_seed(len(images_per_row))
    rows, labels = [], []
    for images in images_per_row:
        row = [1]
        for _ in range(images):
            row += [SLOT] * TOKENS + torch.randint(3, 80, (2,), generator=generator).tolist()
        answer = torch.randint(3, 80, (3,), generator=generator).tolist()
        rows.append([*row, 5, 6, *answer])
        labels.append([IGNORED] * (len(row) + 2) + answer)
    length = max(map(len, rows))
    place = (
        (lambda row, fill: [fill] * (length - len(row)) + row)
        if padding == "left"
        else (lambda row, fill: row + [fill] * (length - len(row)))
    )
    inputs = {
        "input_ids": torch.tensor([place(row, 0) for row in rows]),
        "attention_mask": torch.tensor([place([1] * len(row), 0) for row in rows]),
        "labels": torch.tensor([place(row, IGNORED) for row in labels]),
    }
    if images := sum(images_per_row):
        inputs["pixel_values"] = torch.randn(images, 3, 28, 28, generator=generator)
    return inputs


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("images_per_row", [(1,), (0,), (2,), (1, 0, 2)], ids=str)
def test_same_logits_loss_and_gradients(pair, images_per_row, padding):
    inputs = batch(images_per_row, padding)
    outputs = []
    for model in pair:
        model.zero_grad(set_to_none=True)
        output = model(**inputs)
        output.loss.backward()
        outputs.append(output)
    theirs, ours = outputs
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(ours.logits[real], theirs.logits[real], atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.loss, theirs.loss, atol=1e-5, rtol=0)

    mine = dict(pair[1].named_parameters())
    compared = 0
    for name, parameter in pair[0].named_parameters():
        gradient = mine[our_name(name)].grad
        if parameter.grad is None or gradient is None:
            # Ours does not run the block above the feature layer at all.
            assert gradient is None
            assert parameter.grad is None or not parameter.grad.any()
            continue
        torch.testing.assert_close(gradient, parameter.grad, atol=1e-5, rtol=0, msg=lambda text, n=name: f"{n}: {text}")
        compared += 1
    with_vision = sum(images_per_row) > 0
    assert compared > (40 if with_vision else 15)
    assert (mine["projectors.0.0.weight"].grad is not None) == with_vision
