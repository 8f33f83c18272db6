"""Native aspect: sizes and positions as transformers' SigLIP 2 has them."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil
from transformers.models.siglip2.modeling_siglip2 import Siglip2VisionEmbeddings

from mmchat.vision.block_tower import interpolated
from mmchat.vision.native import native_size

sides = st.one_of(st.integers(1, 60), st.integers(1, 20_000))


def grid_of(width, height, patch, max_patches):
    """Rows and columns of the patches that transformers makes of a picture."""
    processor = Siglip2ImageProcessorPil(patch_size=patch, max_num_patches=max_patches)
    pixels = np.zeros((height, width, 3), np.uint8)
    return processor(Image.fromarray(pixels), return_tensors="np")["spatial_shapes"][0].tolist()


@settings(max_examples=150, deadline=None)
@given(sides, sides, st.sampled_from([4, 14, 16]), st.integers(1, 300))
def test_sizes(width, height, patch, max_patches):
    if width * height > 1_000_000:  # transformers makes the picture
        width, height = max(1, width // 20), max(1, height // 20)
    rows, columns = grid_of(width, height, patch, max_patches)
    assert native_size(width, height, patch, max_patches) == (columns * patch, rows * patch)


def test_sizes_of_usual_pictures():
    assert native_size(640, 480, 16, 256) == (288, 224)
    assert native_size(480, 640, 16, 256) == (224, 288)
    assert native_size(4000, 10, 16, 256) == (4096, 16)
    assert native_size(500, 500, 16, 256) == (256, 256)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9))
def test_positions(rows, columns):
    table = torch.randn(25, 6, generator=torch.Generator().manual_seed(0))
    theirs = Siglip2VisionEmbeddings.resize_positional_embeddings(
        table.reshape(5, 5, 6), torch.tensor([[rows, columns]]), rows * columns
    )
    mine = interpolated(table, 0, (rows, columns), "bilinear", antialias=True)
    torch.testing.assert_close(mine, theirs[0], atol=1e-6, rtol=0)
