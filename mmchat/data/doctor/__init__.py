"""What is wrong with a data set, before an hour of training is spent on it (`mmchat data check`).

one record (examine.py: text.py, look.py) -> findings.py -> parts on the disk, one a chunk (parts.py, run.py)
    -> what only several records tell together (duplicates.py, compare.py)
    -> the files that are written (gather.py) and the two reports (report.py, charts.py)
"""
