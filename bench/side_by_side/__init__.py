"""The parts of `bench/train.py`: the workload, the two variants, and how a variant is watched."""
