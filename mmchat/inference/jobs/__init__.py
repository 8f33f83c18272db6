"""Jobs over many images: a stream of items, workers that answer them, and a journal with one line per item.

sources    files, folders, tables, lists -> a stream of items      items     what an item and an outcome are
prompts    a prompt with fields of the item's record               digests   which items are done, 16 bytes each
workers    answers items with a model, in threads                  journal   the JSON lines; survives any kill
ranks      the same in processes, one model each                   outputs   parquet and sidecars of the journal
dispatch   who works on which item                                 job       all of it together
"""
