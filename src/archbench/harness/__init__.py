"""Measuring: the gate before and after, the paired clock, one process per cell, and the asv front.

Import direction: the vocabulary and ``archbench.hardware``; tracks and contenders are found by discovery only.
"""
