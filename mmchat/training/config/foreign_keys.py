"""What keys of other trainers are called in the run config, for the message about an unknown key.

The names are those of transformers' `TrainingArguments` (training_args.py), LLaVA (llava/train/train.py), LLaMA-Factory
(src/llamafactory/hparams) and ms-swift (swift/llm/argument).
"""

_SAMPLES = (
    "here batch_size is the samples of one optimizer step, over all GPUs: per_device_train_batch_size x "
    "gradient_accumulation_steps x GPUs; micro_batch_size is the samples of one GPU and forward, and how often a step "
    "accumulates follows from both"
)
_LORA = "here it belongs to a module: trainable.language_model: {mode: lora, rank: 64, alpha: 128, dropout: 0.05}"
_TARGETS = "here it is trainable.language_model: {mode: lora, targets: [q_proj, v_proj]}; without it all but the head"
_VARIANT = "here it belongs to a module: trainable.language_model: {{mode: lora, {key}}}"
_TRAINED = "here `trainable` says what is trained: {towers: frozen, projectors: full, language_model: lora}"
_LIGER = "here it is fused_kernels: liger"
_QUANTIZE = "here it is quantize: nf4, beside trainable.language_model: lora"
_INIT = "here it is a property of the model: `mmchat init {option}`"
_CHECKPOINTING = "here it names parts: distributed.activation_checkpointing: [language_model]"
_TRACKERS = "here it is a list: monitoring.trackers: [tensorboard, wandb]"
_SHARES = "here it is part of distributed: zero_stage 0 to 3, offload, or deepspeed: FILE for a JSON of your own"

FOREIGN_KEYS: dict[str, str] = {
    # Optimizer.
    "learning_rate": "here it is optimizer.lr",
    "adam_beta1": "here it is optimizer.betas: [BETA1, BETA2]",
    "adam_beta2": "here it is optimizer.betas: [BETA1, BETA2]",
    "adam_epsilon": "here it is optimizer.eps",
    "weight_decay": "here it is optimizer.weight_decay",
    "max_grad_norm": "here it is optimizer.clip",
    "gradient_clipping": "here it is optimizer.clip",
    "lr_scheduler_type": "here it is optimizer.schedule: cosine, linear or constant",
    "lr_scheduler": "here it is optimizer.schedule: cosine, linear or constant",
    "warmup_ratio": "here it is optimizer.warmup, a share of the steps if it is below 1",
    "warmup_steps": "here it is optimizer.warmup, a number of steps if it is 1 or more",
    "optim": "here it is optimizer.name: adamw, muon, adamw_8bit, paged_adamw or paged_adamw_8bit",
    "quantization_bit": _QUANTIZE,
    "quant_bits": _QUANTIZE,
    "load_in_4bit": _QUANTIZE,
    "bits": _QUANTIZE,
    "mm_projector_lr": "here it is trainable.projectors: {lr: RATE}",
    "vit_lr": "here it is trainable.towers: {lr: RATE}",
    "aligner_lr": "here it is trainable.projectors: {lr: RATE}",
    # Length of the run and size of a step.
    "num_train_epochs": "here it is epochs",
    "num_epochs": "here it is epochs",
    "max_steps": "here it is steps; leave out epochs then",
    "train_batch_size": _SAMPLES,
    "per_device_train_batch_size": _SAMPLES,
    "per_device_eval_batch_size": "here validation takes micro_batch_size, or objective.packing, as training does",
    "gradient_accumulation_steps": _SAMPLES,
    "train_micro_batch_size_per_gpu": _SAMPLES,
    # Precision, memory and distribution.
    "bf16": "here it is precision: bf16",
    "fp16": "here it is precision: bf16 or fp32; there is no fp16",
    "tf32": "here it is precision: bf16 or fp32",
    "torch_dtype": "here it is precision: bf16 or fp32 (weights are trained in fp32), and save_precision for model/",
    "gradient_checkpointing": _CHECKPOINTING,
    "gradient_checkpointing_kwargs": _CHECKPOINTING,
    "vit_gradient_checkpointing": _CHECKPOINTING,
    "fsdp": _SHARES,
    "ddp_find_unused_parameters": "leave it out: parameters without a gradient are handled",
    "flash_attn": "leave it out: the fastest attention that fits is chosen",
    "attn_impl": "leave it out: the fastest attention that fits is chosen",
    "use_liger_kernel": _LIGER,
    "enable_liger_kernel": _LIGER,
    "torch_compile": "here it names parts: compile: [towers, language_model]",
    "padding_free": "here it is objective.packing: {tokens: 4096}",
    "group_by_length": "here it is objective.packing: {tokens: 4096, padded: true}",
    "group_by_modality_length": "here it is objective.packing: {tokens: 4096, padded: true}",
    # Data.
    "dataset": "here it is data.path, or data.sources for several",
    "data_path": "here it is data.path",
    "train_file": "here it is data.path",
    "image_folder": "here it is data.image_root",
    "media_dir": "here it is data.image_root",
    "val_dataset": "here it is validation.path",
    "eval_dataset": "here it is validation.path",
    "eval_steps": "here it is validation.every",
    "eval_strategy": "here it is validation.every, in steps",
    "evaluation_strategy": "here it is validation.every, in steps",
    "cutoff_len": "here it is data.max_length",
    "model_max_length": "here it is data.max_length",
    "max_seq_length": "here it is data.max_length",
    "dataloader_num_workers": "here it is workers",
    "preprocessing_num_workers": "here it is workers",
    "image_aspect_ratio": "here it is objective.fit",
    "lazy_preprocess": "leave it out: samples are always made when a step needs them",
    # Model.
    "model_name_or_path": "here it is model, a directory of `mmchat init`, `mmchat import` or an earlier run",
    "model_id": "here it is model, a directory of `mmchat init`, `mmchat import` or an earlier run",
    "adapter_name_or_path": "here it is model; `mmchat merge` makes one of an adapter",
    "vision_tower": _INIT.format(option="--vision"),
    "mm_projector_type": _INIT.format(option="--projector"),
    "mm_vision_select_layer": _INIT.format(option="--layer"),
    "mm_use_im_start_end": _INIT.format(option="--bare-slots"),
    "pretrain_mm_mlp_adapter": _INIT.format(option="--projector-weights"),
    "template": "here it is a property of the model: `mmchat init --template`, or data.template for one source",
    "conv_version": "here it is a property of the model: `mmchat init --template`, or data.template for one source",
    # What is trained.
    "lora_enable": _LORA,
    "lora_rank": _LORA,
    "lora_r": _LORA,
    "lora_alpha": _LORA,
    "lora_dropout": _LORA,
    "lora_target": _TARGETS,
    "target_modules": _TARGETS,
    "use_dora": _VARIANT.format(key="dora: true"),
    "use_rslora": _VARIANT.format(key="rslora: true"),
    "loraplus_lr_ratio": _VARIANT.format(key="lora_plus_ratio: 16"),
    "lorap_lr_ratio": _VARIANT.format(key="lora_plus_ratio: 16"),
    "finetuning_type": _TRAINED,
    "train_type": _TRAINED,
    "tuner_type": _TRAINED,
    "freeze_backbone": _TRAINED,
    "freeze_vision_tower": _TRAINED,
    "freeze_vit": _TRAINED,
    "freeze_llm": _TRAINED,
    "freeze_aligner": _TRAINED,
    "freeze_multi_modal_projector": _TRAINED,
    "tune_mm_mlp_adapter": _TRAINED,
    # What the run writes.
    "output_dir": "here it is run_dir",
    "overwrite_output_dir": "here a run never overwrites another: name a new run_dir, or remove the old one",
    "save_steps": "here it is checkpoint.every",
    "save_strategy": "here it is checkpoint.every, in steps",
    "save_total_limit": "here it is checkpoint.keep",
    "resume_from_checkpoint": "here it is resume: true, which takes the newest checkpoint of run_dir",
    "logging_steps": "leave it out: every step is logged to metrics.jsonl",
    "logging_dir": "leave it out: metrics.jsonl and trackers are in run_dir",
    "report_to": _TRACKERS,
    "use_swanlab": _TRACKERS,
    "run_name": "here it is the last part of run_dir",
}
"""Key of another trainer -> what to write here. Keys with a dot are never looked up as a whole: their last part is."""
