"""Features take the place of the slots' embeddings: one masked write, for any number of images per sample."""

import torch


def splice(embeddings: torch.Tensor, input_ids: torch.Tensor, features: torch.Tensor, slot_id: int) -> torch.Tensor:
    """Replace the embedding of every slot by the next feature, in reading order.

    Args:
        embeddings: float[B, L, D], the embedded tokens.
        input_ids: int[B, L]; positions equal to `slot_id` are slots.
        features: float[views, N, D] or float[views * N, D], in the order of the images in the batch, an
            image's views in theirs.

    Returns:
        float[B, L, D]. Gradients flow to `features` and to the embeddings of all other tokens.

    The numbers of slots and features must agree. `check_slots` says so on the CPU before a forward;
    here they are not counted, because that would make a GPU wait. A mismatch that slipped through
    still fails in `masked_scatter` where features are too few.
    """
    slots = (input_ids == slot_id).unsqueeze(-1)
    return embeddings.masked_scatter(slots, features.reshape(-1, embeddings.shape[-1]).to(embeddings.dtype))


def check_slots(input_ids: torch.Tensor, slot_id: int, views: int, tokens_per_view: int) -> None:
    """Compare slots with the features that `views` will give, before anything is computed.

    Raises:
        ValueError: the numbers differ; names both, and the slots of each row.
    """
    per_row = (input_ids == slot_id).sum(dim=1).tolist()
    if sum(per_row) != views * tokens_per_view:
        raise ValueError(
            f"the batch has {sum(per_row)} image slots but {views} views x {tokens_per_view} features = "
            f"{views * tokens_per_view}; slots per row: {per_row}"
        )
