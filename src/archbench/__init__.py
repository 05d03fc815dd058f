"""archbench: which implementation of a neural-network building block is best, for this case, on this machine?

This package is the vocabulary every room shares (tracks, cases, contenders, checks, cells, statistics).
It imports no torch: the board, the agent and the edge track work without it.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("archbench")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+source"
