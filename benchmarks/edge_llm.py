"""asv suite of the edge_llm track."""

from archbench.harness.suite import Suite


class EdgeLlm(Suite):
    track = "edge_llm"
