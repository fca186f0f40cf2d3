"""What a notebook shows of each object: its facts, as text."""

from __future__ import annotations

import re

import numpy as np
import pytest

from sparsity_core import Pipeline, Trace, generate, methods
from sparsity_core.methods.decode.double_sparsity.channels import STATISTICS
from sparsity_core.record import notebook_table
from sparsity_core.studies import ChannelStudy, Ranked, Uncut, WeightStudy, bundled_uncut
from tests import tiny, traces


def cells(html: str) -> dict[str, str]:
    """The table's values by name."""
    return dict(re.findall(r"<th[^>]*><bdi>(.*?)</bdi></th><td[^>]*><bdi>(.*?)</bdi></td>", html, re.DOTALL))


def test_text_is_text():
    html = notebook_table("<b>", [("<script>", "</td>\u202e&\ud83d")], ["<img onerror=alert(1)>"])
    assert not re.search(r"<(script|img|b)[ >]", html)
    assert cells(html) == {"&lt;script&gt;": "&lt;/td&gt;\u202e&amp;?"}


def test_a_trace_shows_what_ran_and_what_was_measured():
    """Its losses are 1 to 7, of the dense model 1; KL is 5 in all over 8 tokens, of which 5 agree."""
    found = cells(traces.trace()._repr_html_())
    assert found["model"] == "hand-made" and found["tokens"] == "8, of which the prompt has 6"
    assert found["perplexity"] == f"{np.exp(4):.2f}" and found["dense perplexity"] == f"{np.e:.2f}"
    assert found["KL to dense, nats"] == "0.625" and found["same top token"] == "62%"
    unmeasured = cells(Trace.from_kept([1, 2], [[[0, 1]]])._repr_html_())
    assert unmeasured["keys kept"] == "100%" and "perplexity" not in unmeasured


def test_a_generation_and_a_cut_model_show_themselves():
    out = generate(
        tiny.model(), "ab cd", Pipeline(eviction=methods.H2O(budget=12)), max_new_tokens=3, stop_at_eos=False
    )
    assert cells(out._repr_html_())["new tokens"] == "3"
    compressed = tiny.model().compress(methods.RowNorm(ratio=0.25))
    found = cells(compressed._repr_html_())
    kept = sum(map(len, compressed.kept))
    assert found["neurons kept"].startswith(f"{kept:,} of ") and "row_norm" in found["method"]


@pytest.mark.parametrize("kind", [Uncut, Ranked, WeightStudy, ChannelStudy])
def test_each_study_shows_itself(kind):
    uncut = bundled_uncut("smollm2-135m", "float32")
    made = {
        Uncut: lambda: uncut,
        Ranked: lambda: Ranked("row_norm(ratio=0.25)", np.zeros((2, 5), np.float32)),
        WeightStudy: lambda: WeightStudy(
            **{"model": "m", "fingerprint": "f", "dtype": "float32", "method": "flap(ratio=0.5)", "ratio": 0.5},
            **{"matrices": ("up",), "n_neurons": 8, "measures": np.full((2, 1, 9), 0.5), "after": np.zeros((0, 0, 0))},
            **{"bits": np.zeros((2, 1), np.uint8), "true_cut": 0.25, "perplexity": 12.5, "dense_perplexity": 10.0},
            **{"convention": "16 tokens", "seconds": 1.0},
        ),
        ChannelStudy: lambda: ChannelStudy(
            (4,), np.arange(3), *[np.full((len(STATISTICS), 2, 1, 1, 6), 0.5, np.float32)] * 2
        ),
    }
    found = cells(made[kind]()._repr_html_())
    expected = {
        Uncut: ("layers × neurons", "30 × 1,536"),
        Ranked: ("layers × neurons", "2 × 5"),
        WeightStudy: ("perplexity", "12.500, 10.000 before (16 tokens)"),
        ChannelStudy: ("channels tried", "4"),
    }
    name, value = expected[kind]
    assert found[name] == value
