"""Language models with experts in every second layer, and dense ones: a token's time, bits per byte after training."""

from archbench.harness.suite import TrainingSuite


class SwitchLm(TrainingSuite):
    track = "switch_lm"
