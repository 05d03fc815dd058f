"""The contenders that call other packages: what they refuse, and that they answer with the layer's own weights."""

# ruff: noqa: E402 - the skip comes before what needs torch
from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="no torch installed")

from archbench.kernels.moe_ffn import TRACK, MoeCase
from archbench.kernels.moe_ffn._routing import route
from archbench.track import Unavailable

PEERS = {
    "st_moe": "st_moe_pytorch",
    "mixture_of_experts": "mixture_of_experts",
    "transformers_mixtral": "transformers",
    "transformers_mixtral_eager": "transformers",
}
CASE = MoeCase(groups=2, length=13, dim=8, hidden=12, experts=4, backward=True)


def peer(name: str) -> Any:
    """The contender's module; skips where its package is not installed."""
    pytest.importorskip(
        PEERS[name], reason=f"needs the package {PEERS[name]}, of the extra peers", exc_type=ImportError
    )
    return importlib.import_module(f"archbench.kernels.moe_ffn.{name}")


def test_importing_peers_says_nothing_and_finds_no_torchvision() -> None:
    """torchvision does not import beside every build of torch, and breaks the packages that look for it."""
    installed = [name for name, package in PEERS.items() if importlib.util.find_spec(package)]
    if not installed:
        pytest.skip("none of the packages of the extra peers is installed")
    program = "".join(f"import archbench.kernels.moe_ffn.{name}\n" for name in installed)
    program += "import sys; print('torchvision' in sys.modules)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "False\n", "")


@pytest.mark.parametrize(
    ("name", "sizes", "said"),
    [
        ("st_moe", {"top_k": 1}, "no top-1"),
        ("st_moe", {"dtype": "bf16"}, "float32 masks"),
        ("st_moe", {"router": "gshard"}, "random numbers of its own"),
        ("st_moe", {"router": "switch", "top_k": 1}, "no switch"),
        ("st_moe", {"router": "expert_choice", "capacity_factor": 1.0}, "no expert choice"),
        ("mixture_of_experts", {"top_k": 3}, "not 3"),
        ("mixture_of_experts", {"dtype": "bf16"}, "float32 masks"),
        ("mixture_of_experts", {"router": "gshard"}, "random numbers of its own"),
        ("mixture_of_experts", {"router": "switch", "top_k": 1}, "no switch"),
        ("transformers_mixtral", {"dtype": "fp64"}, "float32"),
        ("transformers_mixtral", {"router": "gshard"}, "no gshard"),
        ("transformers_mixtral", {"dim": 6}, "multiple of 16 bytes"),
        ("transformers_mixtral", {"hidden": 12, "dtype": "bf16"}, "multiple of 16 bytes"),
        ("transformers_mixtral_eager", {"dtype": "fp64"}, "float32"),
    ],
)
def test_what_a_peer_cannot_do_it_refuses(name: str, sizes: dict[str, Any], said: str) -> None:
    with pytest.raises(Unavailable, match=said):
        peer(name).CONTENDER.build(replace(CASE, **sizes))


@pytest.mark.parametrize("name", PEERS)
def test_weights_of_each_call_are_used_and_none_is_kept_or_changed(name: str) -> None:
    call = TRACK.workload(CASE, peer(name).CONTENDER.build(CASE))
    for seed in (1, 2):
        inputs = TRACK.make_inputs(CASE, seed, "cpu")
        before = [tensor.clone() for tensor in inputs]
        assert TRACK.gate(CASE, inputs, call(*inputs)) < 1e-6
        assert all(torch.equal(tensor, old) for tensor, old in zip(inputs, before, strict=True))
        assert all(tensor.grad is None and not tensor.requires_grad for tensor in inputs)


@pytest.mark.parametrize("name", ["st_moe", "mixture_of_experts"])
def test_an_expert_has_room_for_every_token_of_a_group(name: str) -> None:
    """All tokens' first choice is the same expert: with less room than a group some would be dropped."""
    case = replace(CASE, skew=8.0)
    inputs = TRACK.make_inputs(case, 3, "cpu")
    assert int(route(case, *inputs[:2], inputs[4]).counts_E.max()) == case.tokens
    assert TRACK.gate(case, inputs, TRACK.workload(case, peer(name).CONTENDER.build(case))(*inputs)) < 1e-6


def test_what_the_packages_say_of_bf16_is_so() -> None:
    """They would have to be asked if they learned it."""
    x = TRACK.make_inputs(replace(CASE, dtype="bf16"), 4, "cpu")[0]
    st_moe, mixture = peer("st_moe"), peer("mixture_of_experts")
    for moe in (st_moe.MoE(CASE.dim, num_experts=4, is_distributed=False), mixture.MoE(CASE.dim, num_experts=4)):
        with pytest.raises(RuntimeError, match="dtype"):
            moe.bfloat16()(x)


def test_mixtral_is_loaded_with_grouped_mm() -> None:
    """What ``transformers_mixtral`` says is the library's own choice."""
    peer("transformers_mixtral")
    transformers = importlib.import_module("transformers")
    config = transformers.MixtralConfig(
        vocab_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=2,
    )  # fmt: skip
    assert transformers.MixtralForCausalLM(config).config._experts_implementation == "grouped_mm"


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
def test_all_of_the_librarys_implementations_are_the_same_layer(implementation: str, backward: bool) -> None:
    peer("transformers_mixtral")
    mixtral = importlib.import_module("archbench.kernels.moe_ffn._mixtral")
    case = replace(CASE, backward=backward)
    inputs = TRACK.make_inputs(case, 5, "cpu")
    assert TRACK.gate(case, inputs, TRACK.workload(case, mixtral.layer(case, implementation))(*inputs)) < 1e-6
