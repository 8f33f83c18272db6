"""A sample in a packed row gives the outputs and gradients that it gives alone."""

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from mmchat.constants import IGNORE_INDEX
from mmchat.data.collate import Collator
from mmchat.data.samples import EncodedSample, Sample
from mmchat.errors import UserError
from mmchat.model.attention import PACKABLE, enable_packing, packed_inputs
from tests.language_kinds import KINDS, SHAPE

CPU = torch.device("cpu")
LENGTHS = [7, 1, 30, 12]
TOLERANCE = 1e-5
LEAK = 0.05


@pytest.fixture(params=sorted(PACKABLE))
def language_model(request):
    torch.manual_seed(0)
    changes = {"vocab_size": 100, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
    config = AutoConfig.for_model(request.param, **{**SHAPE, **KINDS[request.param], **changes})
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0, 0.15)
    return model


def test_packed_samples_do_not_attend_to_each_other(language_model):
    """Also with sliding windows of eight tokens. The reference is the unmodified model, one sample at a time."""
    rows = [torch.randint(2, 100, (1, length)) for length in LENGTHS]
    row = torch.cat(rows, dim=1)
    with torch.no_grad():
        alone = torch.cat([language_model(ids, use_cache=False).logits for ids in rows], dim=1)
        unisolated = language_model(row, use_cache=False).logits
        enable_packing(language_model)
        inputs = packed_inputs(LENGTHS, CPU)
        packed = language_model(row, **inputs, use_cache=False).logits
        assert (packed - alone).abs().max() < TOLERANCE
        assert (unisolated - alone).abs().max() > LEAK  # the comparison sees a leak where there is one
        one_sample = packed_inputs([len(row[0])], CPU)["attention_mask"]
        positions_only = language_model(row, attention_mask=one_sample, position_ids=inputs["position_ids"])
        assert (positions_only.logits - alone).abs().max() > LEAK

        mask = torch.ones(2, 30, dtype=torch.int64)
        mask[1, 12:] = 0
        padded = torch.stack([rows[2][0], F.pad(rows[3][0], (0, 18))])
        logits = language_model(padded, attention_mask=mask).logits
        assert (logits[0] - alone[0, 8:38]).abs().max() < TOLERANCE  # other batches are what they were
        assert (logits[1, :12] - alone[0, 38:]).abs().max() < TOLERANCE

        language_model.set_attn_implementation("sdpa")
        with pytest.raises(RuntimeError, match="attn_mask dtype"):  # nobody else takes lengths for a mask
            language_model(row, **inputs)


def test_other_kinds_are_refused():
    config = AutoConfig.for_model("gemma2", vocab_size=9, head_dim=8, num_key_value_heads=2, pad_token_id=0, **SHAPE)
    with pytest.raises(
        UserError, match=r"in gpt2, gpt_neox, .*, qwen3, but not in gemma2; set objective.packing.padded: true"
    ):
        enable_packing(AutoModelForCausalLM.from_config(config))


def loss_of(model, batch):
    inputs = packed_inputs(batch.packed, CPU) if batch.packed else {"attention_mask": batch.attention_mask}
    logits = model(input_ids=batch.input_ids, pixel_values=batch.pixel_values, use_cache=False, **inputs).logits
    return logits, F.cross_entropy(logits[0, :-1], batch.labels[0, 1:], reduction="sum", ignore_index=IGNORE_INDEX)


@pytest.mark.parametrize("kind", ["llama", "opt", "qwen2"])
@pytest.mark.parametrize("images", [(0, 0, 0), (1, 0, 2), (0, 3, 1)], ids=str)
def test_gradients_of_an_assistant_are_the_sum_of_its_samples(make_assistant, kind, images):
    """For every parameter, including towers and projector; samples of 70 and 5 tokens, with several images or none."""
    model, processor = make_assistant(kind)
    specs, slot = processor.image_processor.specs, model.config.image_token_id
    generator = torch.Generator().manual_seed(3)
    samples = []
    for number, (length, image_count) in enumerate(zip((70, 5, 19), images, strict=True)):
        words = torch.randint(5, 60, (length,), generator=generator).tolist()
        ids = words[:2] + [slot] * (image_count * processor.image_tokens) + words[2:]
        labels = [IGNORE_INDEX if token == slot or place % 3 == 0 else token for place, token in enumerate(ids)]
        size = (1, 3, specs[0].image_size, specs[0].image_size)
        drawn = [torch.randint(0, 256, size, dtype=torch.uint8, generator=generator) for _ in range(image_count)]
        samples.append(Sample(number, str(number), EncodedSample(ids, labels, [[image.numpy()] for image in drawn])))
    settings = {"pad_id": 0, "specs": specs, "slot_id": slot, "tokens_per_view": processor.image_tokens}

    expected = []
    for sample in samples:
        logits, loss = loss_of(model, Collator(**settings)([sample]))
        loss.backward()
        expected.append(logits.detach()[0])
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    enable_packing(model.language_model)
    logits, loss = loss_of(model, Collator(**settings, packs=True)(samples))
    loss.backward()
    assert (logits[0] - torch.cat(expected)).abs().max() < TOLERANCE
    assert sum(images) == 0 or any(name.startswith("towers.") for name in gradients)
    for name, parameter in model.named_parameters():
        if name not in gradients:
            assert parameter.grad is None, name
            continue
        # Softmax does not see what is added to all keys, so but for rounding that gradient is zero.
        size = gradients[name.replace("k_proj.bias", "k_proj.weight")].abs().max()
        assert (parameter.grad - gradients[name]).abs().max() <= TOLERANCE * size, name
