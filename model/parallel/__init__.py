"""What is wrapped around a finished network from outside: recomputation, compilation, data and sequence parallelism.

The network holds no rank, mesh or environment variable.
"""

from model.parallel.ranks import Ranks, Strategy, agreed, joined_ranks, mean_over_ranks
from model.parallel.shares import gathered, load_whole, whole_state
from model.parallel.updates import Updates
from model.parallel.wrapping import deterministic_algorithms, parallelize, updates_of

__all__ = [
    "Ranks",
    "Strategy",
    "Updates",
    "agreed",
    "deterministic_algorithms",
    "gathered",
    "joined_ranks",
    "load_whole",
    "mean_over_ranks",
    "parallelize",
    "updates_of",
    "whole_state",
]
