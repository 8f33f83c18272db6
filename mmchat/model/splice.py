"""Features take the place of the slots' embeddings: one masked write, for any number of images per sample."""

import torch


def splice(embeddings: torch.Tensor, input_ids: torch.Tensor, features: torch.Tensor, slot_id: int) -> torch.Tensor:
    """Replace the embedding of every slot by the next feature, in reading order.

    Args:
        embeddings: float[B, L, D], the embedded tokens.
        input_ids: int[B, L]; positions equal to `slot_id` are slots.
        features: float[images, N, D] or float[images * N, D], in the order of the images in the batch.

    Returns:
        float[B, L, D]. Gradients flow to `features` and to the embeddings of all other tokens.

    The numbers of slots and features must agree. `check_slots` says so on the CPU before a forward;
    here they are not counted, because that would make a GPU wait. A mismatch that slipped through
    still fails in `masked_scatter` where features are too few.
    """
    slots = (input_ids == slot_id).unsqueeze(-1)
    return embeddings.masked_scatter(slots, features.reshape(-1, embeddings.shape[-1]).to(embeddings.dtype))


def check_slots(input_ids: torch.Tensor, slot_id: int, images: int, tokens_per_image: int) -> None:
    """Compare slots with the features that `images` pictures will give, before anything is computed.

    Raises:
        ValueError: the numbers differ; names both, and the slots of each row.
    """
    per_row = (input_ids == slot_id).sum(dim=1).tolist()
    if sum(per_row) != images * tokens_per_image:
        raise ValueError(
            f"the batch has {sum(per_row)} image slots but {images} images x {tokens_per_image} features = "
            f"{images * tokens_per_image}; slots per row: {per_row}"
        )
