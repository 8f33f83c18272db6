"""Variant A: transformers' LlavaForConditionalGeneration and its Trainer, as its examples use them."""

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
"""Our name of a module -> how their names of its parameters begin."""

ROW = 2048
"""Positions of every row of the way `packed`."""

Rows = list[dict[str, torch.Tensor]]
"""Each input_ids and labels int64[L], pixel_values float32[images, 3, H, W]."""


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


def packed(samples: Rows) -> Rows:
    """Samples one behind another in as few rows as will do, all about equally full, rows in their first sample's order.

    As nanoVLM does it (data/advanced_datasets.py, ConstantLengthDataset): one causal mask and one count of positions
    for the whole row, so that samples see those before them.
    """
    lengths = [len(sample["input_ids"]) for sample in samples]
    plan = pack(np.array([(length, 1) for length in lengths]), np.array([ROW, np.inf]), ranks=1)
    rows = [[samples[place] for place in row] for (row,) in sorted(plan)]
    return [{name: torch.cat([sample[name] for sample in row]) for name in row[0]} for row in rows]


def collate(rows: Rows, length: int | None = None) -> dict[str, torch.Tensor]:
    """Padded on the right to the longest, or to `length`."""
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

    def on_train_begin(self, *_: Any, model: torch.nn.Module, **__: Any) -> None:
        self.recorder.begin(model)

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


def train(config: RunConfig, samples: Rows, steps: int, how: str, recorder: Recorder) -> None:
    """Train on the encoded samples. how: trainer, logits_to_keep, packed or loop."""
    rows, per_step, length = samples, config.batch_size, None
    if how == "packed":
        tokens_of_step = sum(len(sample["input_ids"]) for sample in samples) / len(samples) * config.batch_size
        rows, per_step, length = packed(samples), max(1, round(tokens_of_step / ROW)), ROW
    batches = [rows[start : start + per_step] for start in range(0, steps * per_step, per_step)]
    model = open_llava(Path(config.model), config.trainable)
    if config.distributed.activation_checkpointing:
        model.gradient_checkpointing_enable(CHECKPOINTING["all"])
    if how == "loop":
        train_by_loop(model, batches, config, recorder)
    else:
        train_by_trainer(
            model, batches, config, recorder, SupervisedTrainer if how == "logits_to_keep" else Trainer, length
        )
    for step, batch in zip(recorder.steps, batches, strict=True):
        lengths = [len(row["input_ids"]) for row in batch]
        step |= {"tokens": sum(lengths), "positions": len(batch) * (length or max(lengths))}


def train_by_trainer(
    model: torch.nn.Module,
    batches: list[Rows],
    config: RunConfig,
    recorder: Recorder,
    kind: type[Trainer],
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
    kind(model, arguments, partial(collate, length=length), rows, callbacks=[Watch(recorder)]).train()


def train_by_loop(model: torch.nn.Module, batches: list[Rows], config: RunConfig, recorder: Recorder) -> None:
    """The same without Trainer."""
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
