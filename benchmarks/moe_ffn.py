"""Mixtures of experts: every contender beside a dense layer of as many operations."""

from archbench.harness.suite import Suite


class MoeFfn(Suite):
    track = "moe_ffn"
