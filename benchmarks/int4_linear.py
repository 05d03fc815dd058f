"""Linear layers with 4-bit weights: every contender against the dense layer."""

from archbench.harness.suite import Suite


class Int4Linear(Suite):
    track = "int4_linear"
