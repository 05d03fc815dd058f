"""Runs: what is reported of them, how they compare with the dense model's, and the run that is kept."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="no torch installed")

from archbench.checks import Wrong  # noqa: E402
from archbench.kernels.moe_ffn import MoeCase  # noqa: E402
from archbench.kernels.moe_ffn._routing import routing  # noqa: E402
from archbench.models.switch_lm import TRACK, SwitchCase  # noqa: E402
from archbench.models.switch_lm._curves import at, over_time, reaches  # noqa: E402
from archbench.models.switch_lm._dense_run import dense_run, identity  # noqa: E402
from archbench.models.switch_lm._model import Routed, dense, switch  # noqa: E402
from archbench.models.switch_lm._text import _loads, evaluation, text_of  # noqa: E402
from archbench.models.switch_lm._workload import Training, compared  # noqa: E402
from archbench.track import Place  # noqa: E402
from archbench.training import Outcome  # noqa: E402

CASE = SwitchCase(
    "cpython", length=16, width=16, layers=2, heads=2, batch=8, steps=40, lr=1e-2, target=5.0, curve_rows=16, seeds=1
)
CURVE = [(10.0, 4.0), (20.0, 3.0), (30.0, 3.5), (40.0, 2.0)]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Outcome]]:
    """A run of either kind with seed 1, in a cache of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        makers = {"dense": dense(CASE), "switch": switch(CASE, 4), "again": switch(CASE, 4)}
        yield {name: Training(CASE, maker).run(1, "cpu") for name, maker in makers.items()}


def test_a_run_learns_and_repeats_bit_by_bit(outcomes: dict[str, Outcome]) -> None:
    for name in ("dense", "switch"):
        curve = outcomes[name].curves["bits_per_byte"]
        assert len(curve) == 20
        assert curve[-1][1] < math.log2(text_of(CASE).characters) - 1.5
    for name in ("loss", "bits_per_byte", "load_entropy", "dropped_share"):
        assert outcomes["switch"].curves[name] == outcomes["again"].curves[name]


def test_a_run_reports_quality_time_load_and_size(outcomes: dict[str, Outcome]) -> None:
    found = outcomes["switch"].metrics
    assert {"bits_per_byte", "test_error", "step_s", "train_s", "bits_per_byte_equal_time"} <= set(found)
    assert 0 <= found["load_imbalance"] < 1
    assert 0 <= found["dropped_share"] < 1
    assert found["load_imbalance"] == pytest.approx(1 - outcomes["switch"].curves["load_entropy"][-1][1], abs=0.05)
    assert found["parameters_bytes"] == 4 * sum(p.numel() for p in switch(CASE, 4)(0).parameters())
    assert found["steps_to_target"] < CASE.steps
    assert found["seconds_to_target_s"] < found["train_s"]
    assert "load_imbalance" not in outcomes["dense"].metrics


def test_the_dense_model_is_equal_to_itself(outcomes: dict[str, Outcome]) -> None:
    found = outcomes["dense"].metrics
    assert found["step_slowdown"] == 1
    assert found["bits_per_byte_equal_time"] == found["bits_per_byte_equal_flops"] == found["bits_per_byte"]
    assert found["steps_share"] == found["seconds_share"] <= 1


def test_operations_are_the_steps_stretched(outcomes: dict[str, Outcome]) -> None:
    steps, operations = (outcomes["switch"].curves[name] for name in ("bits_per_byte", "bits_per_byte_over_flops"))
    cost = 3 * switch(CASE, 4)(0).operations() * CASE.tokens
    assert [(step * cost, bits) for step, bits in steps] == operations


def test_curves_are_read_between_their_points() -> None:
    assert [at(CURVE, step) for step in (5, 10, 15, 40, 50)] == [4.0, 4.0, 3.5, 2.0, 2.0]
    assert [reaches(CURVE, value) for value in (4.5, 3.25, 2.75, 2.0, 1.9)] == [10.0, 17.5, 35.0, 40.0, None]


def test_a_curve_over_time_is_stretched_by_the_slowdown_and_ends_with_its_run() -> None:
    twice = dict(over_time(CURVE, 2.0))
    assert max(twice) == 2.0
    assert twice[1.0] == at(CURVE, 20)
    assert min(twice) == 0.5  # a quarter of the steps
    assert max(x for x, _ in over_time(CURVE, 0.97)) == 0.95


def test_equal_time_is_read_where_the_dense_run_ends() -> None:
    rival = [(10.0, 5.0), (40.0, 3.5)]
    found = compared(CURVE, rival, final=2.1, slowdown=2.0, operations=4 / 3)
    assert found == pytest.approx(
        {
            "bits_per_byte_equal_time": 2.1 + 3.0 - 2.0,
            "bits_per_byte_equal_flops": 2.1 + 3.5 - 2.0,
            "steps_share": 15 / 40,
            "seconds_share": 2 * 15 / 40,
        }
    )
    assert set(compared(rival, CURVE, 3.5, 1.0, 1.0)) == {"bits_per_byte_equal_time", "bits_per_byte_equal_flops"}


def test_bits_are_counted_for_each_byte() -> None:
    """An untrained head of zeros guesses: log2(characters) bits for each character, of one byte or more."""
    model = dense(CASE)(0)
    torch.nn.init.zeros_(model.head.weight)
    task = text_of(CASE)
    assert task.windows == (len(task.test) - 1) // CASE.length
    assert task.windows % CASE.batch, "the last batch is a short one"
    text = task.test.decode(task.test.tokens()[1 : task.windows * CASE.length + 1])
    expected = math.log2(task.characters) * len(text) / len(text.encode())
    assert evaluation(CASE, task.windows, "cpu")(model)["bits_per_byte"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("rows", "sizes"), [(1, [1]), (8, [8]), (11, [8, 3])])
def test_so_many_windows_are_watched_and_spread_over_the_test_text(rows: int, sizes: list[int]) -> None:
    task = text_of(CASE)
    batches = task.test_batches(rows)
    assert [len(tokens_BT) for tokens_BT, _ in batches] == sizes
    text = task.test.tokens()
    windows = torch.cat([torch.cat((tokens_BT, next_BT[:, -1:]), 1) for tokens_BT, next_BT in batches])
    for row, window in enumerate(windows):
        begin = row * task.windows // rows * CASE.length
        assert torch.equal(window, text[begin : begin + CASE.length + 1])


@torch.no_grad()
def test_a_short_last_batch_weighs_by_its_tokens() -> None:
    task, model = text_of(CASE), switch(CASE, 4)(0)
    whole, parts = evaluation(CASE, 11, "cpu"), []
    for tokens_BT, next_BT in task.test_batches(11):
        nats = torch.nn.functional.cross_entropy(model(tokens_BT).logits_BTV.flatten(0, 1), next_BT.flatten())
        parts.append((float(nats) * next_BT.numel(), int(task.bytes_V[next_BT].sum())))
    expected = sum(nats for nats, _ in parts) / math.log(2) / sum(size for _, size in parts)
    assert whole(model)["bits_per_byte"] == pytest.approx(expected, rel=1e-5)


def test_the_load_is_counted_as_the_router_chose() -> None:
    """Logits of bfloat16 are equal often, and argmax then takes another expert than the router."""
    logits_NE = torch.randint(0, 3, (64, 8), generator=torch.Generator().manual_seed(0)).bfloat16()
    asked = MoeCase(1, 64, 4, 4, 8, 1, "switch", 8.0)
    routed = Routed(logits_NE, routing(asked, logits_NE.unsqueeze(0), torch.empty(0)))
    share_E = routed.routing.counts_E / 64  # with room for all
    expected = float(torch.special.entr(share_E).sum()) / math.log(8)
    assert _loads([[routed]], 64) == {"load_entropy": pytest.approx(expected, rel=1e-6), "dropped_share": 0}


def test_the_dense_run_is_kept_by_all_that_decides_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    case = replace(CASE, steps=3)
    first = dense_run(case, 0, "cpu")[1]
    again = dense_run(replace(case, capacity_factor=2.0, target=1.0, seeds=9), 0, "cpu")[1]
    assert again == first  # its seconds too: it was read
    assert dense_run(case, 0, "cpu", anew=True)[1].train_s != first.train_s
    names = {identity(replace(case, **change), 0, "cpu") for change in ({}, {"steps": 4}, {"lr": 1.0}, {"width": 32})}
    assert len(names | {identity(case, 1, "cpu")}) == 5


def test_a_damaged_file_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    case = replace(CASE, steps=3)
    first = dense_run(case, 0, "cpu")[1]
    (kept,) = tmp_path.rglob("*.pt")
    kept.write_bytes(kept.read_bytes()[:-7])
    assert dense_run(case, 0, "cpu")[1].curves["loss"] == first.curves["loss"]


def test_a_dense_run_that_diverges_is_nothing_to_compare_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(Wrong, match="seed 0 diverged"):
        Training(replace(CASE, lr=1e6), switch(CASE, 4)).run(0, "cpu")


def test_the_timed_step_trains_on_its_batch() -> None:
    training = Training(CASE, switch(CASE, 4))
    batch = TRACK.make_inputs(CASE, 1, "cpu")
    losses = [float(training(*batch)) for _ in range(30)]
    assert losses[-1] < losses[0] - 0.5
    assert losses[0] == pytest.approx(math.log(text_of(CASE).characters), rel=0.15)


def test_the_gate_wants_a_loss() -> None:
    batch = TRACK.make_inputs(CASE, 1, "cpu")
    for wrong, sentence in (
        (torch.tensor(float("nan")), "the loss is nan"),
        (torch.tensor(100.0), "a guess among"),
        (torch.tensor(-1.0), "the loss is -1"),
        (torch.zeros(2), "a scalar tensor"),
        (1.0, "returned float"),
    ):
        with pytest.raises(Wrong, match=sentence):
            TRACK.gate(CASE, batch, wrong)
    assert TRACK.gate(CASE, batch, torch.tensor(3.0)) == 0.0


def test_the_data_has_a_name_an_origin_and_a_fingerprint() -> None:
    data = Training(CASE, dense(CASE)).data()
    assert (data.name, data.fingerprint) == ("cpython", text_of(CASE).origin.fingerprint)
    assert "pydoc_data" in data.origin


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"precision": "fp8"}, "precision 'fp8': allowed are fp32, bf16"),
        ({"steps": 0}, "steps is 0"),
        ({"layers": 1}, "layers is 1"),
        ({"heads": 3}, "heads is 3: must divide"),
        ({"capacity_factor": 0.0}, "capacity_factor is 0.0"),
        ({"capacity_factor": "1"}, "capacity_factor is '1'"),
        ({"length": 2.5}, "length is 2.5"),
        ({"batch": math.inf}, "batch is inf"),
        ({"width": math.nan}, "width is nan"),
        ({"seeds": True}, "seeds is True"),
        ({"curve_rows": None}, "curve_rows is None"),
        ({"threads": 0}, "threads is 0"),
        ({"threads": 1.5}, "threads is 1.5"),
        ({"lr": math.nan}, "lr is nan"),
        ({"lr": -1.0}, "lr is -1.0"),
        ({"lr": math.inf}, "lr is inf"),
        ({"target": math.nan}, "target is nan"),
    ],
)
def test_a_case_that_makes_no_sense_is_refused(change: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        replace(CASE, **change)  # type: ignore[arg-type]


def test_threads_are_an_axis_where_they_are_set() -> None:
    assert "threads" not in CASE.axes
    assert replace(CASE, threads=2).axes == CASE.axes | {"threads": 2}


def test_large_runs_are_left_to_gpus() -> None:
    host, gpu = Place("cpu", 2, 4 << 30), Place("cuda", 2, 16 << 30)
    skipped = [case for case in TRACK.bench_cases if TRACK.skip(case, host)]
    assert 0 < len(skipped) < len(TRACK.bench_cases)
    assert all("GPU" in str(TRACK.skip(case, host)) for case in skipped)
    assert not any(TRACK.skip(case, gpu) for case in TRACK.bench_cases)
