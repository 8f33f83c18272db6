"""Zero-shot accuracy of a contrastive run while it goes, shared out over the ranks."""

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
from mmchat.training.distributed import collectives
from mmchat.training.objectives.base import blank_image
from mmchat.training.objectives.contrastive import ContrastiveObjective


class ZeroShotAccuracy:
    """Made before the first step, so that a mistake in what is to be scored is told then.

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
        """Scores over the images that could be read, and those, on any rank, that could not. All ranks call this."""
        engine.eval()
        embedder = _ThroughEngine(engine, self.objective)
        classes = class_embeddings(embedder, self.data.classes, self.prompts)
        targets = np.array(self.data.targets)
        ranks = np.full(len(targets), -1)
        rejected: list[Rejected] = []
        stride = self.batch_size * collectives.ranks()
        for start in range(0, len(targets), stride):
            mine = range(start + collectives.rank(), min(start + stride, len(targets)), collectives.ranks())
            images = {}
            for number in mine:
                image = self.data.images[number]
                try:
                    images[number] = image.open()
                except UserError as error:
                    rejected.append(Rejected(image.name, image.name, str(error), error.kind))
            vectors = embedder.images(list(images.values()))
            seen = list(images)
            ranks[seen] = ranks_of_targets(vectors @ classes.T, targets[seen])
        # Each image is looked at by one rank; with the others it is still -1.
        ranks = collectives.all_reduce(torch.from_numpy(ranks), "max").numpy()
        return _scores(ranks[ranks >= 0], targets[ranks >= 0], len(classes)), collectives.all_gather(rejected)


def _scores(ranks: np.ndarray, targets: np.ndarray, classes: int) -> dict[str, float]:
    """As they stand in metrics.jsonl; of no image there are none."""
    if not len(ranks):
        return {}
    found = {f"zero_shot_top{k}": float((ranks < k).mean()) for k in (1, 5) if k < classes}
    return found | {"zero_shot_mean_per_class": mean_per_class(targets, ranks == 0)}


class _ThroughEngine(Embedder):
    """By the engine's own forward, always whole: weights in parts are put together there, and every rank runs the same
    modules equally often, whether it has an image left or not."""

    def __init__(self, engine: deepspeed.DeepSpeedEngine, objective: ContrastiveObjective) -> None:
        super().__init__(objective.model, objective.tokenizer)
        self.engine, self.device = engine, engine.device

    def _encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        word = torch.tensor([self.ids("")], device=self.device)
        seen = pixels if len(pixels) else blank_image(self.spec, self.device)
        return self.engine(seen, word, torch.ones_like(word))[0][: len(pixels)]

    def _encode_text(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.engine(blank_image(self.spec, self.device), ids, mask)[1]
