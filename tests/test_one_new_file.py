"""Adding a contender is exactly one new file: it is listed, measured, gated and on the board with no other edit."""

from __future__ import annotations

import json

import pytest

from working_copy import Copy

NEW = '''"""A contender that was not there before.

Source: this test.
"""

import torch.nn.functional as F

from archbench.track import Contender

CONTENDER = Contender(
    build=lambda case: lambda q, k, v: F.scaled_dot_product_attention(
        q, k, v, is_causal=case.causal, enable_gqa=case.kv_heads != case.heads
    ),
    family="peer",
)
'''
CASE = "b1-h4-len128-d64-fp32-fwd"


@pytest.fixture(scope="module")
def grown(tree: Copy) -> Copy:
    (tree.top / "kernels" / "attention" / "brand_new.py").write_text(NEW)
    return tree


def test_it_is_listed(grown: Copy) -> None:
    tracks = json.loads(grown.archbench("list", "--format", "json").stdout)["tracks"]
    attention = next(track for track in tracks if track["track"] == "attention")
    entry = next(c for c in attention["contenders"] if c["contender"] == "brand_new")
    assert entry == {
        "contender": "brand_new",
        "status": "ok",
        "reason": "",
        "source": "archbench.kernels.attention.brand_new",
    }


def test_it_is_an_asv_parameter(grown: Copy) -> None:
    code = "import benchmarks.attention as b; print('\\n'.join(b.Attention.params[1]))"
    assert "brand_new" in grown.run("-c", code).stdout.splitlines()


def test_the_generic_test_runs_it(grown: Copy) -> None:
    done = grown.run("-m", "pytest", "-q", "tests/test_contenders.py", "-k", "brand_new", "-p", "no:cacheprovider")
    assert " passed" in done.stdout
    assert "brand_new" in grown.run("-m", "pytest", "--collect-only", "-q", "tests/test_contenders.py").stdout


def test_it_is_measured_and_on_the_board_and_the_board_outlives_it(grown: Copy) -> None:
    grown.archbench("run", "attention/brand_new", "--case", CASE)
    rows = json.loads(grown.archbench("export", "--format", "json").stdout)["rows"]
    row = next(r for r in rows if r["contender"] == "brand_new")
    assert row["status"] == "ok", row
    assert row["metrics"]["slowdown"]["ci"] is not None
    assert row["reproduce"] == f"archbench run attention/brand_new --case {CASE}"
    (grown.top / "kernels" / "attention" / "brand_new.py").unlink()
    grown.archbench("board")
    page = (grown.top / "reports" / "site" / "track" / "attention.html").read_text()
    assert "brand_new" in page
    assert "A contender that was not there before." in page
