"""Bytes and FLOPs counted in the interpreter, against the formulas of the roofline page."""

from __future__ import annotations

import os

import pytest
import torch

from benchmarks import roofline
from benchmarks.roofline import CARDS, Shape, Work

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("loads are counted under the interpreter alone", allow_module_level=True)

import triton.language as tl  # noqa: E402

from benchmarks.counted import cases, counting  # noqa: E402

CASES = list(cases())


@triton.jit
def _twice(x, y, n, BLOCK: tl.constexpr):
    """y = x · x, reading x twice."""
    o = tl.arange(0, BLOCK)
    tl.store(y + o, tl.load(x + o, mask=o < n, other=0.0) * tl.load(x + o, mask=o < n, other=0.0), mask=o < n)


def test_a_byte_counts_once_a_launch_in_memory_and_at_every_use_when_issued_and_a_masked_lane_never():
    x, y = torch.ones(16, dtype=torch.float16), torch.zeros(16)
    with counting() as found:
        for _ in range(3):
            _twice[(1,)](x, y, 10, BLOCK=16)
    # Ten of sixteen lanes: 2 bytes read, twice, and 4 written; three launches. All sixteen lanes multiply.
    assert (found.memory, found.issued, found.vector) == (3 * (20 + 40), 3 * (40 + 40), 3 * 2 * 16)
    assert found.products == 0


def test_counting_leaves_the_interpreter_as_it_was():
    from triton.runtime.interpreter import interpreter_builder

    before = dict(vars(interpreter_builder))
    with pytest.raises(ZeroDivisionError), counting():
        _ = 1 / 0
    assert vars(interpreter_builder).keys() == before.keys()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_kernel_moves_and_computes_what_the_formula_says(case):
    with counting() as found:
        case.run()
    assert found.memory == pytest.approx(case.model.memory, rel=0.05)
    assert found.issued >= found.memory
    flops = (found.products, case.model.products) if case.model.products else (found.vector, case.model.vector)
    assert flops[0] == pytest.approx(flops[1], rel=0.05)


def test_every_operation_with_a_kernel_is_counted():
    names = {case.name.split(",")[0] for case in CASES}
    assert names == {"label_scores", "sparse_decode", "flash_column_score", "gated_attention", "evict_scan"}


def test_the_bytes_of_one_decode_step_by_hand():
    # Two KV heads of 4 channels and 10 tokens, int4 labels of 2 channels: 1 byte of label, 2 of scale, 4 of score a token;
    # four heads' queries of two float32.
    shape = Shape(batch=1, heads=4, kv_heads=2, dim=4, tokens=10)
    assert roofline.label_work(shape, channels=2, kind="int4").memory == 2 * 10 * 7 + 4 * 2 * 4
    # Five keys of two heads: 16 bytes of key and value, 8 of index; 16 numbers of query and output in half precision;
    # and one split's part: four heads of 4 + 1 float32, written and read.
    assert roofline.sparse_decode_work(shape, selected=5).memory == 2 * 5 * (16 + 8) + 2 * 16 * 2 + 2 * 4 * 5 * 4


def test_the_slowest_of_memory_and_computing_bounds_the_time():
    card = CARDS["H200 SXM"]
    assert Work(4.8e12).seconds(card) == pytest.approx(1.0)
    assert Work(4.8e12, products=2 * 989.4e12, vector=66.9e12).seconds(card) == pytest.approx(2.0)


def test_the_page_shows_what_the_command_predicts():
    assert roofline.predicted() in roofline.PAGE.read_text()
