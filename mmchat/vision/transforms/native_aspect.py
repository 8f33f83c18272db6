"""Image size for towers of native aspect ratio (SigLIP 2 NaFlex). No torch."""

from math import ceil

SMALLEST_SCALE, LARGEST_SCALE, PRECISION = 1e-6, 100.0, 1e-5


def native_size(width: int, height: int, patch: int, max_patches: int) -> tuple[int, int]:
    """The size to which an image is scaled so that it has at most, and nearly, `max_patches` patches.

    The scale is found by bisection with the precision of the original (google-research/big_vision,
    pp/proj/image_text/ops_naflex.py), so that sizes change at the same aspect ratios.

    Args:
        width: In pixels.
        height: In pixels.
        patch: Side of a patch in pixels.
        max_patches: Largest number of patches.

    Returns:
        Width and height in pixels, multiples of `patch`, at least one patch each. The aspect ratio is kept up to a
        patch.
    """

    def patches_along(side: int, scale: float) -> int:
        return max(1, ceil(side * scale / patch))

    small, large = SMALLEST_SCALE, LARGEST_SCALE
    while large - small >= PRECISION:
        middle = (small + large) / 2
        fits = patches_along(width, middle) * patches_along(height, middle) <= max_patches
        small, large = (middle, large) if fits else (small, middle)
    return patches_along(width, small) * patch, patches_along(height, small) * patch
