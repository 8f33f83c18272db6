"""How the samples of a step, or of a part of the held-out records, are split into micro-batches of the ranks."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from mmchat.data.length_grouping import group_by_length
from mmchat.data.mixture import Mixture
from mmchat.data.order import split_batch, split_micro_batches
from mmchat.data.packing import PackingConfig, pack
from mmchat.errors import SharedError
from mmchat.training.config import RunConfig
from mmchat.training.distributed import collectives, process_group
from mmchat.training.objectives.base import Objective


class StepSplitter(ABC):
    """Splits the samples of a step; calling it with sample numbers gives the micro-batches of this rank."""

    @abstractmethod
    def rounds(self, numbers: Sequence[int]) -> list[list[list[int]]]:
        """Sample numbers of all micro-batches, by [round][rank]."""

    def __call__(self, numbers: Sequence[int]) -> list[list[int]]:
        return [by_rank[process_group.rank()] for by_rank in self.rounds(numbers)]


class PaddedSplitter(StepSplitter):
    """The same number of samples in every micro-batch, in the order of the step.

    Raises:
        UserError: the batch cannot be split evenly.
    """

    def __init__(self, batch_size: int, micro_batch_size: int | None, ranks: int) -> None:
        self._size, self._rounds = split_batch(batch_size, micro_batch_size, ranks)
        self._ranks = ranks

    def rounds(self, numbers: Sequence[int]) -> list[list[list[int]]]:
        of_ranks = [split_micro_batches(numbers, self._size, rank, self._ranks) for rank in range(self._ranks)]
        return [list(by_rank) for by_rank in zip(*of_ranks, strict=True)]

    def __str__(self) -> str:
        return f"{self._rounds} x {self._size}"


class PackedSplitter(StepSplitter):
    """Micro-batches of similar size within a budget of tokens and images.

    Raises:
        SharedError: a sample exceeds the budget, or lengths could not be measured.
    """

    def __init__(self, packing: PackingConfig, mixture: Mixture, objective: Objective, ranks: int) -> None:
        self._ranks, self._plan = ranks, group_by_length if packing.padded else pack
        self._tokens = packing.tokens or mixture.max_length
        self._budget = np.array([self._tokens, packing.images or math.inf])
        # From rank 0, because all ranks must plan alike, even if a file appears while lengths are measured.
        self._sizes = collectives.from_rank_0(lambda: _tokens_and_views(mixture, objective))
        if len(too_large := np.flatnonzero((self._sizes > self._budget).any(axis=1))):
            record = mixture.find(int(too_large[0]))[1]
            tokens, views = self._sizes[too_large[0]]
            raise SharedError(
                f"{len(too_large)} sample(s) fit into no forward: {record.where} (id {record.id}) has {tokens} tokens "
                f"and {views} view(s) of images, but objective.packing.tokens is {self._tokens} and "
                f"objective.packing.images {packing.images}; allow more, or cut samples with max_length"
            )

    def rounds(self, numbers: Sequence[int]) -> list[list[list[int]]]:
        planned = self._plan(self._sizes[numbers], self._budget, self._ranks)
        return [[[numbers[place] for place in row] for row in rows] for rows in planned]

    def __str__(self) -> str:
        rows = "samples of similar length, padded to" if self._plan is group_by_length else "rows of"
        return f"{rows} at most {self._tokens:,} tokens"


def _tokens_and_views(mixture: Mixture, objective: Objective) -> np.ndarray:
    """int64[samples, 2]: tokens and views of every sample of a mixture."""
    lengths = [objective.lengths(source, mixture.max_length) for source in mixture.sources]
    return np.concatenate([np.stack([one.tokens, one.views], axis=1) for one in lengths]).astype(np.int64)


def step_splitter(config: RunConfig, mixture: Mixture, objective: Objective, ranks: int | None = None) -> StepSplitter:
    """The splitter that the run config asks for.

    Args:
        mixture: the training or the held-out records.
        ranks: None: the ranks of this run.
    """
    ranks = ranks or process_group.world_size()
    if config.objective.packing:
        return PackedSplitter(config.objective.packing, mixture, objective, ranks)
    return PaddedSplitter(config.batch_size, config.micro_batch_size, ranks)
