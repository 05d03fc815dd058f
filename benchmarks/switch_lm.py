"""Switch layers against dense ones: a step's time, bits per byte after training, and the memory of a step."""

from archbench.harness.suite import TrainingSuite


class SwitchLm(TrainingSuite):
    track = "switch_lm"
