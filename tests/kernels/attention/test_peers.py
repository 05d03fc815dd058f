"""The contenders that call other packages: what they refuse, what they share, and that they call what they name."""

# ruff: noqa: E402 - the skip comes before what needs torch
from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="no torch installed")

from archbench.kernels.attention import TRACK, AttentionCase
from archbench.track import Unavailable

PEERS = {
    "x_transformers": "x_transformers",
    "onnxruntime_mha": "onnxruntime",
    "transformers_fnet": "transformers",
    "liger": "liger_kernel",
}
CASE = AttentionCase(batch=2, heads=4, length=50, dtype="fp32")


def peer(name: str) -> Any:
    """The contender's module; skips where its package is not installed."""
    pytest.importorskip(
        PEERS[name], reason=f"needs the package {PEERS[name]}, of the extra peers", exc_type=ImportError
    )
    return importlib.import_module(f"archbench.kernels.attention.{name}")


def test_importing_peers_says_nothing_and_finds_no_torchvision() -> None:
    """torchvision does not import beside every build of torch, and breaks the packages that look for it."""
    installed = [name for name, package in PEERS.items() if importlib.util.find_spec(package)]
    if not installed:
        pytest.skip("none of the packages of the extra peers is installed")
    program = "".join(f"import archbench.kernels.attention.{name}\n" for name in installed)
    program += "import sys; print('torchvision' in sys.modules)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "False\n", "")


@pytest.mark.parametrize(
    ("name", "sizes", "said"),
    [
        ("onnxruntime_mha", {"backward": True}, "no gradient"),
        ("onnxruntime_mha", {"dtype": "bf16"}, "no bf16"),
        ("onnxruntime_mha", {"dtype": "fp64"}, "no fp64"),
        ("transformers_fnet", {"causal": True}, "cannot be causal"),
        ("transformers_fnet", {"backward": True}, "no gradient"),
        ("transformers_fnet", {"dtype": "bf16"}, "no bf16"),
        ("liger", {"causal": True}, "no causal mask"),
        ("liger", {"kv_heads": 2}, "no grouped"),
        ("liger", {"dtype": "fp32"}, "TF32"),
        ("liger", {"dtype": "fp64"}, "no fp64"),
    ],
)
def test_what_a_peer_cannot_do_it_refuses(name: str, sizes: dict[str, Any], said: str) -> None:
    with pytest.raises(Unavailable, match=said):
        peer(name).CONTENDER.build(replace(CASE, **sizes))


@pytest.mark.parametrize("name", ["x_transformers", "onnxruntime_mha"])
@pytest.mark.parametrize(("causal", "kv_heads"), [*product((False, True), (4, 2, 1))])
def test_strided_inputs_and_all_groupings_are_answered(name: str, causal: bool, kv_heads: int) -> None:
    case = replace(CASE, causal=causal, kv_heads=kv_heads)
    inputs = TRACK.make_inputs(case, 42, "cpu")
    strided = tuple(tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in inputs)
    out = TRACK.workload(case, peer(name).CONTENDER.build(case))(*strided)
    assert TRACK.gate(case, inputs, out) < 1e-6


@pytest.mark.parametrize(("causal", "operator"), [(False, "MultiHeadAttention"), (True, "GroupQueryAttention")])
def test_onnx_runtime_runs_one_operator_on_the_threads_of_torch(causal: bool, operator: str) -> None:
    ours = peer("onnxruntime_mha")
    onnx = importlib.import_module("onnx")
    case = replace(CASE, causal=causal, kv_heads=1)
    (node,) = onnx.load_model_from_string(ours.model(case)).graph.node
    assert (node.op_type, node.domain) == (operator, "com.microsoft")
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            assert ours.session(case).get_session_options().intra_op_num_threads == count
    finally:
        torch.set_num_threads(threads)


def test_onnx_runtime_returns_memory_of_torch_that_the_next_call_leaves_alone() -> None:
    call = peer("onnxruntime_mha").CONTENDER.build(CASE)
    first_inputs, second_inputs = (TRACK.make_inputs(CASE, seed, "cpu") for seed in (43, 44))
    first = call(*first_inputs)
    kept = first.clone()
    second = call(*second_inputs)
    assert first.data_ptr() != second.data_ptr()
    assert torch.equal(first, kept)
    assert TRACK.gate(CASE, second_inputs, second) < 1e-6


def test_both_fourier_contenders_say_the_same() -> None:
    ours, theirs = importlib.import_module("archbench.kernels.attention.fourier"), peer("transformers_fnet")
    case = replace(CASE, kv_heads=2)
    inputs = TRACK.make_inputs(case, 45, "cpu")
    assert torch.equal(theirs.CONTENDER.build(case)(*inputs), ours.CONTENDER.build(case)(*inputs))
    assert theirs.CONTENDER.differs == ours.CONTENDER.differs


def test_flash_attn_is_called_with_the_length_before_the_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernels need a GPU: in their place stands what its documentation says they compute, on [B, T, H, D]."""

    def flash_attn_func(q: Any, k: Any, v: Any, causal: bool = False) -> Any:
        assert all(tensor.stride(-1) == 1 for tensor in (q, k, v)), "the last dimension must be contiguous"
        q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
        return out.transpose(1, 2).contiguous()

    package = ModuleType("flash_attn")
    package.flash_attn_func = flash_attn_func  # type: ignore[attr-defined]
    name = "archbench.kernels.attention.flash_attn"
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.delitem(sys.modules, name, raising=False)
    try:
        contender = importlib.import_module(name).CONTENDER
        for causal, kv_heads in product((False, True), (4, 2)):
            case = replace(CASE, dtype="bf16", causal=causal, kv_heads=kv_heads, backward=True)
            inputs = TRACK.make_inputs(case, 46, "cpu")
            assert TRACK.gate(case, inputs, TRACK.workload(case, contender.build(case))(*inputs)) < 0.02
        for sizes, said in (({"dtype": "fp32"}, "no fp32"), ({"dtype": "bf16", "head_dim": 320}, "up to 256")):
            with pytest.raises(Unavailable, match=said):
                contender.build(replace(CASE, **sizes))
        assert contender.device == "cuda"
    finally:
        sys.modules.pop(name, None)  # built on a stand-in: nobody else may find it


def test_liger_answers_with_a_window_over_everything() -> None:
    peer("liger")
    program = Path(__file__).with_name("interpreted_liger.py")
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(program)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("done\n")
