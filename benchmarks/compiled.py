"""`python -m benchmarks.compiled [TARGET …]`: every Triton kernel compiled ahead of time, which needs no card.

For the shapes of real models and each dtype: registers, bytes that spill, shared memory and occupancy, to
benchmarks/results/compiled.json. A kernel is compiled as its launch compiles it: strides of contiguous tensors, 16-byte aligned.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import triton
from sparselens_kernels.evict_scan import kernel as scan
from sparselens_kernels.evict_scan import walk
from sparselens_kernels.flash_column_score import kernel as flash
from sparselens_kernels.gated_attention import kernel as gate
from sparselens_kernels.label_scores import kernel as labels
from sparselens_kernels.sparse_decode import kernel as decode
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.measure import RESULTS

FILE = RESULTS / "compiled.json"
SHAPES = {  # query heads of a KV head, channels
    "Llama-2-7B": (1, 128),
    "Llama-3-8B, Qwen3-8B": (4, 128),
    "Gemma-3-4B": (2, 256),
    "Phi-3-mini": (1, 96),
}
DTYPES = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}
TARGETS = {  # of a multiprocessor: registers, most threads, shared bytes
    "sm_80": (GPUTarget("cuda", 80, 32), 65536, 2048, 164 * 1024),
    "sm_90": (GPUTarget("cuda", 90, 32), 65536, 2048, 228 * 1024),
    "sm_100": (GPUTarget("cuda", 100, 32), 65536, 2048, 228 * 1024),
    "gfx942": (GPUTarget("hip", "gfx942", 64), 131072, 2048, 64 * 1024),
}
_POINTERS = {
    "half": {"q", "k", "v", "out", "gate_q", "gate_k"},
    "*i32": {"snapshot_of", "column", "evicted_at", "until", "dropped_at", "dropped_in", "budgets", "held", "n_empty",
             "n_free", "n_selected"},
    "*i64": {"index"},
    "*fp32": {"decay", "weight", "initial", "score", "logit", "logits", "final", "threshold", "snapshots", "lse", "parts",
              "log2_decay", "part", "p", "choices", "lowest"},
    "fp32": {"scale", "bias", "factor"},
}  # fmt: skip
_CONTIGUOUS = ("_channel", "u_token", "s_token")  # strides of 1
_ALIGNED = ("_batch", "_head", "_token", "_query")


@dataclass(frozen=True)
class Case:
    """One kernel at one model's heads."""

    kernel: str
    function: Any
    shape: str
    dtype: str
    constants: dict[str, Any]
    warps: int = 4
    stages: int = 3
    kinds: dict[str, str] = field(default_factory=dict)
    dense: tuple[str, ...] = _CONTIGUOUS


@dataclass(frozen=True)
class Row:
    kernel: str
    shape: str
    dtype: str
    target: str
    registers: int
    spilled: int  # bytes of a thread's stack
    shared: int  # bytes
    occupancy: float  # warps that a multiprocessor holds, of the most it can
    products: str  # how it multiplies: wgmma, mma or mfma on tensor cores; fma


def cases() -> Iterator[Case]:
    for shape, (group, dim) in SHAPES.items():
        wide = max(16, triton.next_power_of_2(dim))
        for dtype in DTYPES:
            half = dtype != "float32"
            block = flash.rows_of_block(half, wide)
            both = {"DIM": dim, "GROUP": group, "UNTIL": False, "BLOCK": block, "BLOCK_D": wide}
            yield Case("rows", flash._rows, shape, dtype, both | {"DIM_V": dim, "BLOCK_V": wide}, 4, 2)
            yield Case("columns", flash._columns, shape, dtype, both | {"MEAN": False}, 4, 2)
            keys = decode.keys_of_block(half, wide)
            heads = {"DIM": dim, "DIM_V": dim, "GROUP": group, "BLOCK_D": wide, "BLOCK_V": wide}
            yield Case("sparse_decode", decode._split, shape, dtype, heads | {"BLOCK": keys, "BLOCK_G": 16})
            own = triton.next_power_of_2(group)
            slots = {"SCORED": True, "REDUCTION": "sum", "BLOCK_G": own, "BLOCK_S": scan.slots_of_block(own, wide)}
            yield Case("scan", scan._scan, shape, dtype, heads | slots, scan._WARPS, 1)
    for group, dim in sorted({(group, dim) for group, dim in SHAPES.values()}):
        shape = f"{group} query heads"
        merged = {"GROUP": group, "DIM_V": dim, "BLOCK": 16, "BLOCK_V": triton.next_power_of_2(dim)}
        yield Case("merge", decode._merge, f"{shape} of {dim}", "float16", merged)
    for group in (1, 2, 4):
        shape = f"{group} query heads"
        columns = {"GROUP": group, "SCORED": True, "REDUCTION": "sum", "BLOCK_G": group, "BLOCK_C": 1024}
        yield Case("walk", walk._walk, f"{shape}, 1,024 columns", "float32", columns, max(4, min(16, group * 2)))
        for bits, values in ((16, "*fp16"), (8, "*i8"), (4, "*u8")):
            for reduction in (4, labels._LOG_SUM):
                told = {"CHANNELS": 16, "GROUP": group, "REDUCTION": reduction, "BITS": bits, "BLOCK": labels._BLOCK}
                kinds = {"q": "*fp32", "values": values, "token_scale": "*fp16", "out": "*fp32"}
                name = f"label_scores {'softmax' if reduction == 4 else 'log-sum'}"
                dense = ("v_token", "s_token")
                yield Case(name, labels._scores, f"{shape}, {bits} bits", "float32", told, 1, 3, kinds, dense)
    yield Case("log_sum", labels._log_sum, "any", "float32", {"BLOCK": labels._BLOCK})
    for dtype in DTYPES:
        told = {"RANK": 64, "BLOCK": 64 if dtype != "float32" else 32, "BLOCK_R": 64, "LAST": 2**31 - 1}
        yield Case("drops", gate._drops, "rank 64", dtype, told, 4, 2)


def compiled(case: Case, target: str) -> Row:
    """Raises triton.compiler.CompilationError where it does not compile."""
    names = case.function.arg_names
    kind = {name: given.replace("half", f"*{DTYPES[case.dtype]}") for given, of in _POINTERS.items() for name in of}
    kind |= case.kinds
    ones = {name for name in names if name.endswith(case.dense)}
    constants = case.constants | dict.fromkeys(ones, 1)
    signature = {name: "constexpr" if name in constants else kind.get(name, "i32") for name in names}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if name not in constants and (signature[name].startswith("*") or name.endswith(_ALIGNED))
    }
    source = ASTSource(
        case.function, signature, constexprs={(names.index(n),): x for n, x in constants.items()}, attrs=aligned
    )
    chip, registers, threads, shared = TARGETS[target]
    made = triton.compile(source, target=chip, options={"num_warps": case.warps, "num_stages": case.stages})
    used, spilled = _resources(made)
    width = case.warps * chip.warp_size
    granted = -(-max(used, 1) // 8) * 8 * width  # registers are granted by eights
    room = [registers // granted, threads // width, 32 if chip.backend == "cuda" else 16]
    room += [shared // made.metadata.shared] if made.metadata.shared else []
    return Row(
        case.kernel, case.shape, case.dtype, target, used, spilled, made.metadata.shared,
        round(min(room) * width / threads, 3), _products(made),
    )  # fmt: skip


def _resources(made: Any) -> tuple[int, int]:
    """(registers of a thread, bytes of its stack)."""
    if "amdgcn" in made.asm:
        said = made.asm["amdgcn"]
        return _number("vgpr_count", said), _number("private_segment_fixed_size", said)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        said = subprocess.run(
            [str(tool), "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    return _number("REG", said), _number("STACK", said)


def _number(name: str, said: str) -> int:
    found = re.search(rf"\b{name}:\s*(\d+)", said)
    if found is None:
        raise ValueError(f"the compiler's report names no {name}: {said[:200]}")
    return int(found[1])


def _products(made: Any) -> str:
    text = made.asm.get("ptx") or made.asm["amdgcn"]
    names = {"tcgen05": "tcgen05.mma", "wgmma": "wgmma.mma", "mma": "mma.sync", "mfma": "v_mfma"}
    return next((name for name, mark in names.items() if mark in text), "fma")


def main(targets: list[str]) -> int:
    for target in targets or TARGETS:
        found = []
        for case in cases():
            found.append(asdict(compiled(case, target)))
            print(*found[-1].values(), flush=True)
        held = [row for row in json.loads(FILE.read_text()) if row["target"] != target] if FILE.exists() else []
        FILE.write_text("[\n" + ",\n".join(json.dumps(row) for row in held + found) + "\n]\n")
    return 0


if __name__ == "__main__":
    os.environ["TRITON_INTERPRET"] = "0"
    sys.exit(main(sys.argv[1:]))
