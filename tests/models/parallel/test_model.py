"""The model every contender trains: the same first weights everywhere, parts in order, an optimizer for cut tensors."""

# ruff: noqa: E402 - the skip comes before what needs torch
from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the model is made of torch")

from archbench.models.parallel import ParallelCase
from archbench.models.parallel._model import language_model, loss_of, optimizer_of, order

CASE = ParallelCase(layers=2, dim=32, length=15, batch=4, micro_batches=2)


def test_first_weights_do_not_depend_on_what_was_drawn_before() -> None:
    one = language_model(CASE).state_dict()
    torch.manual_seed(123)
    state = torch.get_rng_state()
    other = language_model(CASE).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(torch.get_rng_state(), state)


def test_two_weights_are_hardly_ever_alike() -> None:
    matrices = torch.cat([p.detach().flatten() for p in language_model(CASE).parameters() if p.dim() > 1])
    assert 0.01 < float(matrices.std()) < 0.02
    assert len(matrices.unique()) > 0.99 * len(matrices)


def test_a_token_sees_no_later_one() -> None:
    model = language_model(CASE)
    tokens = torch.arange(15).reshape(1, 15)
    changed = tokens.clone()
    changed[0, 9] += 1
    same = torch.isclose(model(tokens), model(changed), rtol=0, atol=0).all(-1)[0]
    assert same.tolist() == [True] * 9 + [False] * 6


def test_the_first_loss_is_that_of_a_guess() -> None:
    tokens = torch.randint(0, CASE.vocabulary, (4, 16), generator=torch.Generator().manual_seed(0))
    loss = loss_of(language_model(CASE)(tokens[:, :-1]), tokens[:, 1:])
    assert float(loss.detach()) == pytest.approx(torch.tensor(CASE.vocabulary).log().item(), rel=0.02)


def test_parts_are_ordered_by_number() -> None:
    names = ["10.up.bias", "2.up.weight", "2.up.bias", "0.token.weight"]
    assert sorted(names, key=order) == ["0.token.weight", "2.up.bias", "2.up.weight", "10.up.bias"]


def test_one_process_has_one_group_of_parameters() -> None:
    model = language_model(CASE)
    (group,) = optimizer_of(model).param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters()]


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ({"dim": 30, "heads": 4}, "4 heads: must divide 30"),
        ({"heads": 2, "world": 4}, "2 heads: must divide 32 and be a multiple of 4 ranks"),
        ({"batch": 3}, "a batch of 3 cannot be cut"),
        ({"batch": 6, "micro_batches": 2, "world": 4}, "a batch of 6 cannot be cut for 2 parts and 4 ranks"),
        ({"backend": "mpi"}, "allowed are gloo, nccl"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(sizes: dict[str, int | str], reason: str) -> None:
    usual: dict[str, int | str] = {"layers": 2, "dim": 32, "length": 15, "batch": 4, "micro_batches": 2}
    with pytest.raises(ValueError, match=reason):
        ParallelCase(**{**usual, **sizes})  # type: ignore[arg-type]
