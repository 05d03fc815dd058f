"""ResNet-18 with each norm: a step against BatchNorm's, and the error of whole runs."""

from archbench.harness.suite import TrainingSuite


class ResnetNorms(TrainingSuite):
    track = "resnet_norms"
