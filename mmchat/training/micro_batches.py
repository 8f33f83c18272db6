"""How the samples of a step, or of a stretch of the held-out records, are shared out over ranks and forwards."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from mmchat.data.config import DataConfig
from mmchat.data.lengths import mixture_sizes
from mmchat.data.mixture import Mixture
from mmchat.data.order import split_micro_batches
from mmchat.data.packing import group, pack
from mmchat.errors import SharedError
from mmchat.training.config import RunConfig
from mmchat.training.distributed import collectives
from mmchat.training.engine import accumulation
from mmchat.training.objectives.base import Objective


class Sharing(ABC):
    """Called with sample numbers, gives this rank's micro-batches; `rounds` those of all ranks, by [round][rank]."""

    @abstractmethod
    def rounds(self, numbers: Sequence[int]) -> list[list[list[int]]]: ...

    def __call__(self, numbers: Sequence[int]) -> list[list[int]]:
        return [by_rank[collectives.rank()] for by_rank in self.rounds(numbers)]


class Padded(Sharing):
    """Equally many samples in every forward, as they come.

    Raises:
        UserError: the batch cannot be shared out evenly.
    """

    def __init__(self, config: RunConfig, ranks: int) -> None:
        self._size, self._rounds = accumulation(config, ranks)
        self._ranks = ranks

    def rounds(self, numbers: Sequence[int]) -> list[list[list[int]]]:
        of_ranks = [split_micro_batches(numbers, self._size, rank, self._ranks) for rank in range(self._ranks)]
        return [list(by_rank) for by_rank in zip(*of_ranks, strict=True)]

    def __str__(self) -> str:
        return f"{self._rounds} x {self._size}"


class Packed(Sharing):
    """Forwards within a budget and of like size.

    Raises:
        SharedError: a sample is larger than a forward may be, or lengths could not be measured.
    """

    def __init__(self, config: RunConfig, data: DataConfig, mixture: Mixture, objective: Objective, ranks: int) -> None:
        self._ranks, self._plan = ranks, group if config.objective.packing.padded else pack
        self._tokens = config.objective.packing.tokens or data.max_length
        self._budget = np.array([self._tokens, config.objective.packing.images or math.inf])
        # From rank 0, because all ranks must plan alike, even if a file appears while they look.
        self._sizes = collectives.from_rank_0(lambda: mixture_sizes(mixture, objective.processor, data.max_length))
        if len(too_large := np.flatnonzero((self._sizes > self._budget).any(axis=1))):
            record = mixture.find(int(too_large[0]))[1]
            tokens, views = self._sizes[too_large[0]]
            raise SharedError(
                f"{len(too_large)} sample(s) fit into no forward: {record.where} (id {record.id}) has {tokens} tokens "
                f"and {views} view(s) of images, but packing.tokens is {self._tokens} and packing.images "
                f"{config.objective.packing.images}; allow more, or cut samples with max_length"
            )

    def rounds(self, numbers: Sequence[int]) -> list[list[list[int]]]:
        planned = self._plan(self._sizes[numbers], self._budget, self._ranks)
        return [[[numbers[place] for place in row] for row in rows] for rows in planned]

    def __str__(self) -> str:
        what = "samples of like length, padded to" if self._plan is group else "rows of"
        return f"{what} at most {self._tokens:,} tokens"


def sharing(
    config: RunConfig, data: DataConfig, mixture: Mixture, objective: Objective, ranks: int | None = None
) -> Sharing:
    """ranks: None takes as many as there are."""
    ranks = ranks or collectives.ranks()
    return Packed(config, data, mixture, objective, ranks) if config.objective.packing else Padded(config, ranks)
