"""Variant A: transformers' LlavaForConditionalGeneration and its Trainer, as its examples use them."""

import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoConfig,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from mmchat.constants import IGNORE_INDEX
from mmchat.files import read_json
from mmchat.training.activation_checkpointing import CHECKPOINTING
from mmchat.training.config import RunConfig
from side_by_side.names import our_name
from side_by_side.recorder import Recorder

MODULES = {"projectors": ("model.multi_modal_projector.",), "language_model": ("model.language_model.", "lm_head.")}
"""Our name of a module -> how their names of its parameters begin."""


def open_llava(folder: Path, trainable: dict[str, Any]) -> LlavaForConditionalGeneration:
    """Their model with our weights; what our table freezes has no gradient."""
    values = read_json(folder / "config.json")
    (tower,) = values["towers"]
    text = dict(values["text_config"])
    text_config = AutoConfig.for_model(text.pop("model_type"), **text)
    tied, text_config.tie_word_embeddings = text_config.tie_word_embeddings, False
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**tower["backbone"]),
        text_config=text_config,
        image_token_id=values["image_token_id"],
        image_seq_length=(tower["backbone"]["image_size"] // tower["backbone"]["patch_size"]) ** 2,
        vision_feature_layer=tower["layer"],
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    if tied:  # by hand: transformers looks for OPT's embeddings in the wrong place
        model.lm_head.weight = model.get_input_embeddings().weight
    weights = load_file(folder / "model.safetensors")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[our_name(name)])
            frozen = {module for module, rule in trainable.items() if rule.mode == "frozen"}
            parameter.requires_grad_(our_name(name).partition(".")[0] not in frozen)
    return model


def collate(samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Padded on the right to the longest."""
    ids = [sample["input_ids"] for sample in samples]
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "labels": pad_sequence([s["labels"] for s in samples], batch_first=True, padding_value=IGNORE_INDEX),
        "pixel_values": torch.stack([sample["pixel_values"] for sample in samples]),
    }


def loss_at_supervised(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """What a user can do who knows `logits_to_keep`: no logits but those that predict something supervised."""
    targets = inputs.pop("labels")[:, 1:]
    supervised = targets != IGNORE_INDEX
    logits = model(**inputs, logits_to_keep=F.pad(supervised, (0, 1))).logits
    return F.cross_entropy(logits.float(), targets[supervised])


class SupervisedTrainer(Trainer):
    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor], **_: Any) -> torch.Tensor:
        return loss_at_supervised(model, inputs)


class Watch(TrainerCallback):
    """Trainer says that a step is over before it tells the step's loss; only the first is timed."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.recorder.begin()

    def on_pre_optimizer_step(self, *_: Any, model: torch.nn.Module, **__: Any) -> None:
        # Only the first step is compared by module; looking at all gradients takes time.
        self.norms = {} if self.recorder.steps else norms_of_modules(model)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.recorder.step()

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        if "loss" in logs:
            # The whole norm is from before clipping; those of modules were taken after it.
            whole = math.hypot(*self.norms.values())
            norms = {name: norm / whole * logs["grad_norm"] for name, norm in self.norms.items()}
            self.recorder.steps[-1] |= {"loss": logs["loss"], "grad_norm": logs["grad_norm"], "grad_norms": norms}


def norms_of_modules(model: torch.nn.Module) -> dict[str, float]:
    found = {}
    for module, prefixes in MODULES.items():
        gradients = [p.grad for n, p in model.named_parameters() if n.startswith(prefixes) and p.grad is not None]
        if gradients:
            found[module] = torch.nn.utils.get_total_norm(gradients).item()
    return found


def train(config: RunConfig, samples: Path, steps: int, how: str, recorder: Recorder) -> None:
    """So many steps as `config` says, over the encoded samples. how: trainer, logits_to_keep or loop."""
    encoded = torch.load(samples)[: steps * config.batch_size]
    model = open_llava(Path(config.model), config.trainable)
    if config.activation_checkpointing:
        model.gradient_checkpointing_enable(CHECKPOINTING["all"])
    if how == "loop":
        train_by_loop(model, encoded, config, recorder)
        return
    arguments = TrainingArguments(
        output_dir=str(config.run_dir / "trainer"),
        per_device_train_batch_size=config.batch_size,
        num_train_epochs=1,
        learning_rate=config.optimizer.lr,
        lr_scheduler_type="constant",
        max_grad_norm=config.optimizer.clip,
        bf16=config.precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    kind = SupervisedTrainer if how == "logits_to_keep" else Trainer
    kind(model, arguments, collate, encoded, callbacks=[Watch(recorder)]).train()


def train_by_loop(
    model: torch.nn.Module, encoded: list[dict[str, torch.Tensor]], config: RunConfig, recorder: Recorder
) -> None:
    """The same without Trainer."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.optimizer.lr, weight_decay=0.0)
    recorder.begin()
    for start in range(0, len(encoded), config.batch_size):
        batch = collate(encoded[start : start + config.batch_size])
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        with torch.autocast(device, torch.bfloat16, enabled=config.precision == "bf16"):
            loss = model(**batch).loss
        loss.backward()
        norms = norms_of_modules(model) if start == 0 else {}
        norm = torch.nn.utils.clip_grad_norm_(trained, config.optimizer.clip)
        optimizer.step()
        optimizer.zero_grad()
        recorder.step(loss=loss.item(), grad_norm=norm.item(), grad_norms=norms)
