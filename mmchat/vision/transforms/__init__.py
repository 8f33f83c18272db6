"""Everything that changes an image between its file and a tower: preprocessing, tiling and augmentation."""
