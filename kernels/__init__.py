"""Tracks about one operation: a folder per track, a file per contender."""
