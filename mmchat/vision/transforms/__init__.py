"""Image transforms between file and tower: preprocessing, tiling and augmentation. No torch."""
