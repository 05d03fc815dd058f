"""asv suite of the largest batch: a call at a small one, and the share of the memory that a sequence takes."""

from archbench.harness.suite import TrainingSuite


class LargestBatch(TrainingSuite):
    track = "largest_batch"
