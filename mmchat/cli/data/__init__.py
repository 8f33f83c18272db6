"""`mmchat data ...`: data sets as a training run sees them."""
