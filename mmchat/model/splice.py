"""Replace the embeddings of image slots by image features: one masked write for any number of images per sample."""

import torch


def splice(embeddings: torch.Tensor, input_ids: torch.Tensor, features: torch.Tensor, slot_id: int) -> torch.Tensor:
    """Replace the embedding of every slot by the next feature, in reading order.

    The numbers of slots and features must agree. They are not counted here, because that would synchronise a GPU; call
    `check_slots` on the CPU before. Without it, too few features still fail in `masked_scatter`.

    Args:
        embeddings: The embedded tokens, float[B, L, D].
        input_ids: int[B, L]. Positions equal to `slot_id` are slots.
        features: float[views, N, D] or float[slots, D], images and their views in reading order.
        slot_id: Id of the slot token.

    Returns:
        float[B, L, D]. Gradients flow to `features` and to the embeddings of all other tokens.
    """
    slots = (input_ids == slot_id).unsqueeze(-1)
    return embeddings.masked_scatter(slots, features.reshape(-1, embeddings.shape[-1]).to(embeddings.dtype))


def check_slots(input_ids: torch.Tensor, slot_id: int, views: int, tokens_per_view: int) -> None:
    """Compare the number of slots with the number of features before anything is computed.

    Args:
        input_ids: int[B, L], best on the CPU.
        slot_id: Id of the slot token.
        views: Number of views in the batch.
        tokens_per_view: Features per view.

    Raises:
        ValueError: The numbers differ. The message names both, and the slots of each row.
    """
    per_row = (input_ids == slot_id).sum(dim=1).tolist()
    if sum(per_row) != views * tokens_per_view:
        raise ValueError(
            f"the batch has {sum(per_row)} image slots but {views} views x {tokens_per_view} features = "
            f"{views * tokens_per_view}; slots per row: {per_row}"
        )


def check_mapped_slots(input_ids: torch.Tensor, slot_id: int, mapped: int) -> None:
    """As `check_slots`, for features that a slot map of `mapped` slots arranges."""
    per_row = (input_ids == slot_id).sum(dim=1).tolist()
    if sum(per_row) != mapped:
        raise ValueError(
            f"the batch has {sum(per_row)} image slots but a slot map of {mapped} slots; slots per row: {per_row}"
        )
