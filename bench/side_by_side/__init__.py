"""Modules of `bench/train.py`: the workload, the two variants, and how they are measured."""
