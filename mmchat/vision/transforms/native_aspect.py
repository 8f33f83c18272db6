"""The size at which a tower for any aspect ratio sees an image. No torch."""

from math import ceil

SMALLEST_SCALE, LARGEST_SCALE, PRECISION = 1e-6, 100.0, 1e-5


def native_size(width: int, height: int, patch: int, max_patches: int) -> tuple[int, int]:
    """(width, height) in pixels, multiples of `patch`, of an image scaled until it has nearly `max_patches`.

    Its proportions are kept up to a patch; neither side is shorter than one. The scale is found by bisection, to the
    precision of the original (google-research/big_vision, pp/proj/image_text/ops_naflex.py), so that borders between
    two sizes lie where it has them.
    """

    def patches_along(side: int, scale: float) -> int:
        return max(1, ceil(side * scale / patch))

    small, large = SMALLEST_SCALE, LARGEST_SCALE
    while large - small >= PRECISION:
        middle = (small + large) / 2
        fits = patches_along(width, middle) * patches_along(height, middle) <= max_patches
        small, large = (middle, large) if fits else (small, middle)
    return patches_along(width, small) * patch, patches_along(height, small) * patch
