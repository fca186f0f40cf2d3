"""Which backend runs, what it needs, and that the kernels compile for a GPU."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

import pytest
from sparselens_kernels import evict_scan, flash_column_score

from tests.kernels.backends import DEVICE, needs_triton, tokens


@needs_triton
@pytest.mark.skipif(DEVICE == "cuda", reason="needs a machine without CUDA")
@pytest.mark.parametrize("op", ["evict_scan", "flash_column_score"])
def test_a_kernel_on_the_cpu_without_the_interpreter_says_what_it_needs(op, monkeypatch):
    importlib.import_module(f"sparselens_kernels.{op}.kernel")  # with the interpreter, for the tests that come after
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    q, k, v = (x.float() for x in tokens(39, n=8))
    numbers = {"budget": 4} if op == "evict_scan" else {}
    with pytest.raises(ValueError, match="needs a CUDA tensor, or TRITON_INTERPRET=1 to run on the CPU"):
        {"evict_scan": evict_scan, "flash_column_score": flash_column_score}[op](q, k, v, backend="triton", **numbers)


def test_auto_takes_the_reference_on_the_cpu():
    q, k, v = (x.float() for x in tokens(40, n=8))
    assert evict_scan(q, k, v, budget=4).backend == "reference"
    assert flash_column_score(q, k, v).backend == "reference"


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from sparselens_kernels.evict_scan import kernel as scan
from sparselens_kernels.flash_column_score import kernel as flash
from sparselens_kernels.gated_attention import kernel as gate

HALF = {"q", "k", "v", "out", "gate_q", "gate_k"}
INTEGER = {"budgets", "held", "snapshot_of", "column", "evicted_at", "until", "dropped_at"}
FLOAT = {"decay", "weight", "initial", "score", "logit", "final", "threshold", "snapshots", "lse", "log2_decay"}
KIND = {"scale": "fp32", "bias": "fp32"}
KIND |= dict.fromkeys(HALF, "*fp16") | dict.fromkeys(INTEGER, "*i32") | dict.fromkeys(FLOAT, "*fp32")
blocks = dict(DIM=80, DIM_V=64, GROUP=3, BLOCK_D=128, BLOCK_V=64)
for kernel, constants in [
    (scan._scan, blocks | dict(SCORED=True, REDUCTION="sum", BLOCK_G=4, BLOCK_S=32)),
    (flash._rows, blocks | dict(BLOCK=64, UNTIL=False)),
    (flash._rows, blocks | dict(BLOCK=64, UNTIL=True)),
    (flash._columns, dict(DIM=80, GROUP=3, MEAN=True, BLOCK=64, BLOCK_D=128, UNTIL=False)),
    (flash._columns, dict(DIM=80, GROUP=3, MEAN=True, BLOCK=64, BLOCK_D=128, UNTIL=True)),
    (gate._drops, dict(RANK=24, BLOCK=64, BLOCK_R=32, LAST=2**31 - 1)),
]:
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else KIND.get(name, "i32") for name in names}
    source = ASTSource(kernel, signature, constexprs={(names.index(name),): x for name, x in constants.items()})
    triton.compile(source, target=GPUTarget("cuda", 90, 32), options=dict(num_warps=8, num_stages=1))
"""


@needs_triton
def test_the_kernels_compile_for_a_gpu(tmp_path):
    """The interpreter runs what the compiler refuses; compiling for sm_90 needs no GPU."""
    env = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_references_import_no_triton_kernel():
    code = (
        "import sys, torch, sparselens_kernels; x = torch.ones(1, 1, 3, 4)\n"
        "sparselens_kernels.evict_scan(x, x, x, budget=2); sparselens_kernels.flash_column_score(x, x, x)\n"
        "print([name for name in sys.modules if name.endswith('.kernel') and name.startswith('sparselens_kernels.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr
