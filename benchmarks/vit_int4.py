"""A 4-bit Vision Transformer: a deployed batch against the float network's, and the error of whole runs."""

from archbench.harness.suite import TrainingSuite


class VitInt4(TrainingSuite):
    track = "vit_int4"
