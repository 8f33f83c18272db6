"""All random number generators that training uses: state saved and restored bit for bit, or seeded again."""

import random

import numpy as np
import torch


def rng_state() -> dict:
    """State of this rank's generators, as tensors and plain values."""
    numpy_state = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": (numpy_state[0], torch.from_numpy(numpy_state[1].astype(np.int64)), *numpy_state[2:]),
        "python": random.getstate(),
    }


def restore_rng_state(state: dict) -> None:
    """Restore what `rng_state` returned."""
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])


def seed_all(seed: int, step: int, rank: int) -> None:
    """Seed all generators with a pure function of the arguments (NumPy's `SeedSequence`, whose algorithm is fixed).

    For a run that is resumed on another number of ranks, for which no states were saved.
    """
    torch_seed, numpy_seed = (int(word) for word in np.random.SeedSequence([seed, step, rank]).generate_state(2))
    torch.manual_seed(torch_seed)  # of every device
    np.random.seed(numpy_seed)
    random.seed(torch_seed)
