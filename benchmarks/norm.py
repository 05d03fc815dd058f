"""Normalization layers: every contender against torch's own."""

from archbench.harness.suite import Suite


class Norm(Suite):
    track = "norm"
