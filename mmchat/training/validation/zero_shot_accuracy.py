"""Zero-shot accuracy during a contrastive run, computed on all ranks."""

import deepspeed
import numpy as np
import torch

from mmchat.contrastive.embedding import Embedder
from mmchat.contrastive.prompts import prompted
from mmchat.data.labelled_images import read_class_names, read_labelled
from mmchat.data.records import Rejected
from mmchat.errors import UserError
from mmchat.evaluation.metrics import mean_per_class, ranks_of_targets
from mmchat.evaluation.zero_shot import class_embeddings
from mmchat.training.config import ZeroShotConfig
from mmchat.training.distributed import collectives, process_group
from mmchat.training.objectives.base import blank_image
from mmchat.training.objectives.contrastive import ContrastiveObjective


class ZeroShotAccuracy:
    """Labelled images that are classified by prompts. Created before the first step, so that mistakes are found then.

    Raises:
        UserError: labelled images or labels that cannot be used, or a text that is too long for the model.
    """

    def __init__(self, config: ZeroShotConfig, objective: ContrastiveObjective) -> None:
        names = read_class_names(config.labels_file) if config.labels_file else None
        self.data = read_labelled(config.path, config.image_root, names)
        self.prompts, self.batch_size, self.objective = config.prompts, config.batch_size, objective
        embedder = Embedder(objective.model, objective.tokenizer)
        for text in prompted(self.data.classes, self.prompts):
            embedder.ids(text)

    @torch.no_grad()
    def __call__(self, engine: deepspeed.DeepSpeedEngine) -> tuple[dict[str, float], list[Rejected]]:
        """Scores over the readable images, and the unreadable ones of all ranks. All ranks call this."""
        engine.eval()
        embedder = _ThroughEngine(engine, self.objective)
        classes = class_embeddings(embedder, self.data.classes, self.prompts)
        targets = np.array(self.data.targets)
        ranks = np.full(len(targets), -1)
        rejected: list[Rejected] = []
        stride = self.batch_size * process_group.world_size()
        for start in range(0, len(targets), stride):
            of_rank = range(start + process_group.rank(), min(start + stride, len(targets)), process_group.world_size())
            images = {}
            for number in of_rank:
                image = self.data.images[number]
                try:
                    images[number] = image.open()
                except UserError as error:
                    rejected.append(Rejected(image.name, image.name, str(error), error.kind))
            vectors = embedder.images(list(images.values()))
            numbers = list(images)
            ranks[numbers] = ranks_of_targets(vectors @ classes.T, targets[numbers])
        # Each image is scored by one rank; the others have -1.
        ranks = collectives.all_reduce(torch.from_numpy(ranks), "max").numpy()
        return _scores(ranks[ranks >= 0], targets[ranks >= 0], len(classes)), collectives.all_gather(rejected)


def _scores(ranks: np.ndarray, targets: np.ndarray, classes: int) -> dict[str, float]:
    """Fields of metrics.jsonl; empty without images."""
    if not len(ranks):
        return {}
    found = {f"zero_shot_top{k}": float((ranks < k).mean()) for k in (1, 5) if k < classes}
    return found | {"zero_shot_mean_per_class": mean_per_class(targets, ranks == 0)}


class _ThroughEngine(Embedder):
    """Embeds through the engine's forward, which gathers sharded weights.

    Every call runs the whole model, so that all ranks run the same modules equally often, even without images left.
    """

    def __init__(self, engine: deepspeed.DeepSpeedEngine, objective: ContrastiveObjective) -> None:
        super().__init__(objective.model, objective.tokenizer)
        self.engine, self.device = engine, engine.device

    def _encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        ids = torch.tensor([self.ids("")], device=self.device)
        pixels_or_blank = pixels if len(pixels) else blank_image(self.spec, self.device)
        return self.engine(pixels_or_blank, ids, torch.ones_like(ids))[0][: len(pixels)]

    def _encode_text(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.engine(blank_image(self.spec, self.device), ids, mask)[1]
