"""asv suite of the parallel track."""

from archbench.harness.suite import Suite


class Parallel(Suite):
    track = "parallel"
