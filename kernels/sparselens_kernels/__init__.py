"""Attention operations that also report what they kept and how they scored it.

Each operation is a folder: `reference.py` reads as the equation and runs anywhere, `kernel.py` is the Triton version,
and `__init__.py` checks the arguments and chooses between them.
"""

from sparselens_kernels.device import Card, Side, cards, is_card
from sparselens_kernels.dispatch import LATE, NEVER
from sparselens_kernels.evict_scan import EvictScan, Memory, evict_scan
from sparselens_kernels.flash_column_score import ColumnScore, flash_column_score
from sparselens_kernels.gated_attention import GatedAttention, gate_drops, gated_attention
from sparselens_kernels.label_scores import Labels, dequantise, label_scores, quantise
from sparselens_kernels.masked_attention import MaskedAttention, masked_attention
from sparselens_kernels.masks import TERMS, BlockColumns, Blocks, Buckets, Columns, Diagonals, KeyMask, Window
from sparselens_kernels.rows import attend, causal_rows, logits, reduce_group
from sparselens_kernels.slots import EMPTY, staying
from sparselens_kernels.sparse_decode import sparse_decode

__all__ = [
    "EMPTY",
    "LATE",
    "NEVER",
    "TERMS",
    "BlockColumns",
    "Blocks",
    "Buckets",
    "Card",
    "ColumnScore",
    "Columns",
    "Diagonals",
    "EvictScan",
    "GatedAttention",
    "KeyMask",
    "Labels",
    "MaskedAttention",
    "Memory",
    "Side",
    "Window",
    "attend",
    "cards",
    "causal_rows",
    "dequantise",
    "evict_scan",
    "flash_column_score",
    "gate_drops",
    "gated_attention",
    "is_card",
    "label_scores",
    "logits",
    "masked_attention",
    "quantise",
    "reduce_group",
    "sparse_decode",
    "staying",
]
