"""How many tokens a language model takes."""

from transformers import PreTrainedConfig

_KEYS = ("max_position_embeddings", "max_seq_len", "n_positions", "n_ctx", "seq_length", "max_sequence_length")
"""Names in transformers' configs; MPT says `max_seq_len`, and BLOOM's checkpoints keep `seq_length`."""


def context_length(config: PreTrainedConfig) -> int | None:
    """Most tokens that a language model takes; None if its config names no limit.

    Without learned positions there may be none: BLOOM adds a bias by distance (ALiBi).

    Args:
        config: The language model's config.
    """
    found = (getattr(config, key, None) for key in _KEYS)
    return next((value for value in found if isinstance(value, int) and value > 0), None)
