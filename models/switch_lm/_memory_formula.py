"""What a training step must hold in memory, counted from the sizes of a case, without a model.

Parameters, their gradients and AdamW's two moments follow from the shapes alone. *Activations* are what the backward
pass needs again, each tensor once: LayerNorm its input with mean and deviation, a product its input, attention the
queries, keys and values, its answer and the logarithm of each row's sum, ReLU its answer, cross-entropy all
log-probabilities. In bf16 products keep copies in bfloat16, of their inputs and of their weights, and attention one of
its bias; LayerNorm and the residual stream stay in float32. *Buffers* are what a model holds beside its parameters:
each block's bias of attention.

*Routing* is what a Switch layer keeps and a dense layer does not: logits and probabilities of all experts, who was
chosen and where each assignment stands, and two more rows of each token, sorted by expert: what its expert was given
and what it answered. The hidden units of experts are activations, as those of a dense layer are. How many assignments
are kept depends on the tokens; it is at most the room there is, and the one number here that no case tells.

Letters: N tokens of a batch, D width, F hidden width, H heads, L layers, V characters, E experts, A assignments that
are kept.

Source: docs/derivations/moe.md
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from archbench.models.switch_lm import SwitchCase

FLOAT, INDEX = 4, 8  # bytes
PRODUCT = {"fp32": 4, "bf16": 2}  # bytes of a number in what is multiplied
MOMENTS = 2  # AdamW's of each parameter
STATISTICS = 2  # LayerNorm's of each token: mean and reciprocal deviation


@dataclass(frozen=True)
class Formula:
    """A case, and what it leaves to contenders and text."""

    case: SwitchCase
    characters: int
    hidden: int  # of the feed-forward layers in the Switch layers' place
    experts: int = 0  # of a Switch layer; 0: the layer is dense
    router: int = FLOAT  # bytes of a number in what the router computes

    def parts(self, kept: Sequence[int]) -> dict[str, int]:
        """Bytes by part, and of all at the step's highest moment. ``kept``: assignments of each Switch layer."""
        numbers, tensors = self.parameters()
        found = {
            "parameters": FLOAT * numbers,
            "gradients": FLOAT * numbers,
            "optimizer": FLOAT * (MOMENTS * numbers + tensors),  # and each tensor's count of steps
            "buffers": FLOAT * self.case.layers * self._bias,
            "activations": self.activations(kept),
            "routing": sum(self.routing(assignments) for assignments in kept),
        }
        return found | {"step_peak": self._peak(kept, sum(found.values()), found["gradients"])}

    def parameters(self) -> tuple[int, int]:
        """How many numbers the model has, in how many tensors."""
        width = self.case.width
        numbers = (2 * self.characters + self.case.length) * width + 2 * width  # embeddings, head; the last LayerNorm
        tensors = 5
        for layer in range(self.case.layers):
            numbers += 4 * width + 4 * width**2 + self._matrices(layer)  # two LayerNorms; attention; feed-forward
            tensors += 4 + 2 + 2
            if self._routed(layer):
                numbers += self.experts * width
                tensors += 1
        return numbers, tensors

    def activations(self, kept: Sequence[int]) -> int:
        """Bytes that live from the forward pass to the backward pass, beside those of routing."""
        tokens, width, product = self.case.tokens, self.case.width, self._product
        norm = FLOAT * (width + STATISTICS)
        attention = norm + product * (width + 3 * width + width) + FLOAT * self.case.heads
        total = self._ends()
        rows = iter(kept)
        for layer in range(self.case.layers):
            total += tokens * (attention + norm)
            if self._routed(layer):
                # A router in float32 keeps its input; one in bfloat16 makes a copy, which is its own.
                total += (tokens * FLOAT * width if self.router == FLOAT else 0) + product * next(rows) * self.hidden
            else:
                total += tokens * product * (width + self._hidden(layer))
        if product < FLOAT:
            blocks = sum(4 * width**2 + self._matrices(layer) + self._bias for layer in range(self.case.layers))
            total += product * (blocks + width * self.characters)
        return total

    def routing(self, assignments: int) -> int:
        """Bytes of one Switch layer that a dense layer does not keep."""
        tokens, width, number = self.case.tokens, self.case.width, self.router
        # Of a token: logits and probabilities, the logarithm of the sum for the z-loss, the chosen expert.
        token = number * (2 * self.experts + 1) + INDEX
        # Of an assignment: its places in two lists, its weight, its row as it was given and as it was answered.
        assignment = 2 * INDEX + self._product * (1 + 2 * width)
        load = number * self.experts
        copies = number * (tokens + self.experts) * width if number < FLOAT else 0  # of the router's input and weights
        return tokens * token + assignments * assignment + load + copies

    def _peak(self, kept: Sequence[int], held: int, gradients: int) -> int:
        """Bytes at the step's highest moment, which is one of two. ``held``: all parts together.

        When the loss is there all is kept, the last step's gradients are not yet given back, and the logits exist, in
        bf16 once more in float32. Or in the backward pass of the last feed-forward layer: what the ends kept is gone,
        and of the gradients there are the head's and this layer's, but also two as large as the hidden units, and
        those of the stream.
        """
        tokens, width, product = self.case.tokens, self.case.width, self._product
        last, head, copied = self.case.layers - 1, width * self.characters, product < FLOAT
        early = held + tokens * self.characters * (product + FLOAT * copied)
        late = held - gradients - self._ends() + head * (FLOAT - product * copied)
        late += tokens * width * (FLOAT + product * copied)
        if self._routed(last):  # its function answers with the gradients of both matrices at once
            late += product * (2 * kept[-1] * (self.hidden + width) + self._matrices(last))
        else:
            late += product * (2 * tokens + width) * self._hidden(last)
        return max(early, late)

    @property
    def _product(self) -> int:
        return PRODUCT[self.case.precision]

    @property
    def _bias(self) -> int:
        """Numbers of a block's bias of attention."""
        return self.case.heads * self.case.length**2

    def _routed(self, layer: int) -> bool:
        return self.experts > 0 and self.case.is_switched(layer)

    def _hidden(self, layer: int) -> int:
        return self.hidden if self.case.is_switched(layer) else self.case.hidden

    def _matrices(self, layer: int) -> int:
        """Numbers of a feed-forward layer's matrices."""
        return (self.experts if self._routed(layer) else 1) * 2 * self.case.width * self._hidden(layer)

    def _ends(self) -> int:
        """Bytes that the last LayerNorm, the head and the loss keep."""
        width = self.case.width
        return self.case.tokens * (FLOAT * (width + STATISTICS + self.characters) + self._product * width)
