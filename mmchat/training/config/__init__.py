"""The run config: its schema, where old keys are now, and what may change on resume. Importable without torch."""

from mmchat.training.config.existing_run import DEEPSPEED_JSON, check_run_dir
from mmchat.training.config.moved import MOVED, load_run_config, load_written_config
from mmchat.training.config.objectives import (
    AssistantConfig,
    ClassifyConfig,
    ContrastiveConfig,
    DistillationConfig,
    ObjectiveConfig,
    Part,
    SimCLRObjectiveConfig,
    ZeroShotConfig,
)
from mmchat.training.config.resume import MAY_CHANGE_ON_RESUME, changed_keys, may_change
from mmchat.training.config.run import (
    BITSANDBYTES_OPTIMIZERS,
    EIGHT_BIT_OPTIMIZERS,
    PAGED_OPTIMIZERS,
    WEIGHTS,
    CheckpointConfig,
    DistributedConfig,
    MonitoringConfig,
    OptimizerConfig,
    Recomputed,
    RunConfig,
    StabilityConfig,
    ValidationConfig,
    ZeroStage,
    as_dict,
)

__all__ = [
    "BITSANDBYTES_OPTIMIZERS",
    "DEEPSPEED_JSON",
    "EIGHT_BIT_OPTIMIZERS",
    "MAY_CHANGE_ON_RESUME",
    "MOVED",
    "PAGED_OPTIMIZERS",
    "WEIGHTS",
    "AssistantConfig",
    "CheckpointConfig",
    "ClassifyConfig",
    "ContrastiveConfig",
    "DistillationConfig",
    "DistributedConfig",
    "MonitoringConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "Part",
    "Recomputed",
    "RunConfig",
    "SimCLRObjectiveConfig",
    "StabilityConfig",
    "ValidationConfig",
    "ZeroShotConfig",
    "ZeroStage",
    "as_dict",
    "changed_keys",
    "check_run_dir",
    "load_run_config",
    "load_written_config",
    "may_change",
]
