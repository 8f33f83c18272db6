"""`mmchat recipe ...`: the configs that come with mmchat."""
