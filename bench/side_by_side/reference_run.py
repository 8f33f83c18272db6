"""Variant A: transformers' LlavaForConditionalGeneration and Trainer, used as in its examples."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
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
from mmchat.data.packing import pack
from mmchat.files import read_json
from mmchat.training.config import RunConfig
from mmchat.training.distributed.activation_checkpointing import CHECKPOINTING
from side_by_side.parameter_names import our_name
from side_by_side.recorder import Recorder

MODULES = {"projectors": ("model.multi_modal_projector.",), "language_model": ("model.language_model.", "lm_head.")}
"""Our module names -> prefixes of transformers' parameter names."""

ROW_TOKENS = 2048
"""Positions of every row of the variant `packed`."""

Rows = list[dict[str, torch.Tensor]]
"""Samples or packed rows: input_ids and labels int64[L], pixel_values float32[images, 3, H, W]."""


def open_llava(folder: Path, trainable: dict[str, Any]) -> LlavaForConditionalGeneration:
    """transformers' model with our weights; modules that `trainable` freezes get no gradient."""
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
    if tied:  # transformers does not find OPT's embeddings
        model.lm_head.weight = model.get_input_embeddings().weight
    weights = load_file(folder / "model.safetensors")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[our_name(name)])
            frozen = {module for module, rule in trainable.items() if rule.mode == "frozen"}
            parameter.requires_grad_(our_name(name).partition(".")[0] not in frozen)
    return model


def pack_rows(samples: Rows) -> Rows:
    """Concatenate samples into few, evenly filled rows, ordered by the first sample of each row.

    As in nanoVLM (data/advanced_datasets.py, ConstantLengthDataset): one causal mask and one range of positions for the
    whole row, so that samples attend to those before them.
    """
    lengths = [len(sample["input_ids"]) for sample in samples]
    plan = pack(np.array([(length, 1) for length in lengths]), np.array([ROW_TOKENS, np.inf]), ranks=1)
    rows = [[samples[place] for place in row] for (row,) in sorted(plan)]
    return [{name: torch.cat([sample[name] for sample in row]) for name in row[0]} for row in rows]


def collate(rows: Rows, length: int | None = None) -> dict[str, torch.Tensor]:
    """A batch, padded on the right to the longest row or to `length`."""
    length = length or max(len(row["input_ids"]) for row in rows)

    def padded(tensors: list[torch.Tensor], value: int) -> torch.Tensor:
        return torch.stack([F.pad(tensor, (0, length - len(tensor)), value=value) for tensor in tensors])

    ids = [row["input_ids"] for row in rows]
    return {
        "input_ids": padded(ids, 0),
        "attention_mask": padded(list(map(torch.ones_like, ids)), 0),
        "labels": padded([row["labels"] for row in rows], IGNORE_INDEX),
        "pixel_values": torch.cat([row["pixel_values"] for row in rows]),
    }


def loss_at_supervised(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The loss with `logits_to_keep`: logits are computed at positions that predict supervised tokens only."""
    targets = inputs.pop("labels")[:, 1:]
    supervised = targets != IGNORE_INDEX
    logits = model(**inputs, logits_to_keep=F.pad(supervised, (0, 1))).logits
    return F.cross_entropy(logits.float(), targets[supervised])


class SupervisedTrainer(Trainer):
    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor], **_: Any) -> torch.Tensor:
        return loss_at_supervised(model, inputs)


class RecorderCallback(TrainerCallback):
    """Passes Trainer's events to a `Recorder`. Trainer reports the end of a step before its loss; the end is timed."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def on_train_begin(self, *_: Any, model: torch.nn.Module, **__: Any) -> None:
        self.recorder.begin(model)

    def on_pre_optimizer_step(self, *_: Any, model: torch.nn.Module, **__: Any) -> None:
        # Norms by module are compared in the first step only, because computing them takes time.
        self.norms = {} if self.recorder.steps else norms_of_modules(model)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.recorder.step()

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        if "loss" in logs:
            # Trainer's norm is from before clipping; those of the modules were computed after it.
            clipped_norm = math.hypot(*self.norms.values())
            norms = {name: norm / clipped_norm * logs["grad_norm"] for name, norm in self.norms.items()}
            self.recorder.steps[-1] |= {"loss": logs["loss"], "grad_norm": logs["grad_norm"], "grad_norms": norms}


def norms_of_modules(model: torch.nn.Module) -> dict[str, float]:
    norms = {}
    for module, prefixes in MODULES.items():
        gradients = [p.grad for n, p in model.named_parameters() if n.startswith(prefixes) and p.grad is not None]
        if gradients:
            norms[module] = torch.nn.utils.get_total_norm(gradients).item()
    return norms


def train(config: RunConfig, samples: Rows, steps: int, variant: str, recorder: Recorder) -> None:
    """Train on the encoded samples. variant: trainer, logits_to_keep, packed or loop."""
    rows, per_step, length = samples, config.batch_size, None
    if variant == "packed":
        tokens_of_step = sum(len(sample["input_ids"]) for sample in samples) / len(samples) * config.batch_size
        rows, per_step, length = pack_rows(samples), max(1, round(tokens_of_step / ROW_TOKENS)), ROW_TOKENS
    batches = [rows[start : start + per_step] for start in range(0, steps * per_step, per_step)]
    model = open_llava(Path(config.model), config.trainable)
    if config.distributed.activation_checkpointing:
        model.gradient_checkpointing_enable(CHECKPOINTING["all"])
    if variant == "loop":
        train_by_loop(model, batches, config, recorder)
    else:
        train_by_trainer(
            model, batches, config, recorder, SupervisedTrainer if variant == "logits_to_keep" else Trainer, length
        )
    for step, batch in zip(recorder.steps, batches, strict=True):
        lengths = [len(row["input_ids"]) for row in batch]
        step |= {"tokens": sum(lengths), "positions": len(batch) * (length or max(lengths))}


def train_by_trainer(
    model: torch.nn.Module,
    batches: list[Rows],
    config: RunConfig,
    recorder: Recorder,
    trainer_class: type[Trainer],
    length: int | None,
) -> None:
    arguments = TrainingArguments(
        output_dir=str(config.run_dir / "trainer"),
        per_device_train_batch_size=len(batches[0]),
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
    rows = [row for batch in batches for row in batch]
    callbacks = [RecorderCallback(recorder)]
    trainer_class(model, arguments, partial(collate, length=length), rows, callbacks=callbacks).train()


def train_by_loop(model: torch.nn.Module, batches: list[Rows], config: RunConfig, recorder: Recorder) -> None:
    """The same training without Trainer."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.optimizer.lr, weight_decay=0.0)
    recorder.begin(model)
    for rows in batches:
        batch = {name: tensor.to(device) for name, tensor in collate(rows).items()}
        with torch.autocast(device, torch.bfloat16, enabled=config.precision == "bf16"):
            loss = model(**batch).loss
        loss.backward()
        norms = {} if recorder.steps else norms_of_modules(model)
        norm = torch.nn.utils.clip_grad_norm_(trained, config.optimizer.clip)
        optimizer.step()
        optimizer.zero_grad()
        recorder.step(loss=loss.item(), grad_norm=norm.item(), grad_norms=norms)
