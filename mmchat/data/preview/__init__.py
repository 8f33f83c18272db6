"""What training sees of a record (`mmchat data show`), in the terminal or as an HTML page."""
