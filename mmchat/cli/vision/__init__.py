"""`mmchat vision ...`: single vision towers."""
