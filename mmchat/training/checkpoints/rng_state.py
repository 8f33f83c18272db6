"""Every generator that training draws from: taken and restored bit for bit, or begun anew."""

import random

import numpy as np
import torch


def rng_state() -> dict:
    """This rank's generators as tensors and plain values."""
    numpy_state = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": (numpy_state[0], torch.from_numpy(numpy_state[1].astype(np.int64)), *numpy_state[2:]),
        "python": random.getstate(),
    }


def restore_rng_state(state: dict) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])


def seed_all(seed: int, step: int, rank: int) -> None:
    """Begin every generator anew, at a pure function of the three (NumPy's `SeedSequence`, whose mixing is specified).

    For a run that goes on with other ranks than before, which left none a state.
    """
    drawn, small = (int(word) for word in np.random.SeedSequence([seed, step, rank]).generate_state(2))
    torch.manual_seed(drawn)  # of every device
    np.random.seed(small)
    random.seed(drawn)
