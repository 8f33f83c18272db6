"""Ranks: collectives, ZeRO 3, stop signals and activation checkpointing."""
