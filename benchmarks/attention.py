"""Attention: every contender against ``torch.nn.functional.scaled_dot_product_attention``."""

from archbench.harness.suite import Suite


class Attention(Suite):
    track = "attention"
