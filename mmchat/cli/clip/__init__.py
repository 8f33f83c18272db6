"""`mmchat clip ...`: dual encoders in the manner of CLIP and SigLIP."""
