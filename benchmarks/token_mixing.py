"""Token mixing: every mixing against attention, a step's time and the error after training."""

from archbench.harness.suite import TrainingSuite


class TokenMixing(TrainingSuite):
    track = "token_mixing"
