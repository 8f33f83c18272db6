"""Data checks before training (`mmchat data check`).

record_checks (with text_checks, image_checks) finds faults in one record; findings lists their kinds
run checks chunks of records in parallel; partial_results stores each chunk, so that a killed check resumes
overlap (with duplicates) compares records with each other and with evaluation sets
outputs writes quarantine, warnings, counts and clean indexes
report (with charts, wording) and terminal present the result
"""
