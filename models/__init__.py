"""Tracks about a network or a training run: a folder per track, a file per contender."""
