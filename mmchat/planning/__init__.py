"""`mmchat plan`: what a run will do and need, before it runs."""
