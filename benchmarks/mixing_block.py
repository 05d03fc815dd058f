"""Mixing block: every mixing against the block with attention."""

from archbench.harness.suite import Suite


class MixingBlock(Suite):
    track = "mixing_block"
