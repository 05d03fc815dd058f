"""archbench: which implementation of a neural-network building block is best, for this case, on this machine?

This package is the vocabulary every room shares (tracks, cases, contenders, checks, cells, statistics).
It imports no torch: the board, the agent and the edge track work without it.
"""

__version__ = "0.1.0"  # pyproject.toml reads it here
