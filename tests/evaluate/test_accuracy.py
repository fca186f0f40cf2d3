"""Tasks by lm-evaluation-harness: its own numbers for the untouched model, and what a pipeline changes."""

from __future__ import annotations

import copy
import importlib.util
import json
import math
import shutil
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from lm_eval import evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM

from sparsity_core import Pipeline
from sparsity_core.cli.main import main
from sparsity_core.evaluate.accuracies import accuracy
from sparsity_core.evaluate.harness import PipelineLM, Setting, harness_results
from sparsity_core.evaluate.local_tasks import config_of, rows_of
from sparsity_core.models.loading import wrap
from sparsity_core.work import silent
from tests import tiny

TASKS = Path(__file__).parent / "tasks"
SHARED = Path(__file__).parents[3] / "shared" / "data" / "tasks"


def untouched(model):
    """transformers' own model with the same weights, its attention its own SDPA."""
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(model.hf.config)  # which from_config changes
    hf = AutoModelForCausalLM.from_config(config, dtype=model.dtype, attn_implementation="sdpa").eval()
    hf.load_state_dict(model.hf.state_dict())
    assert hf.config._attn_implementation == "sdpa"
    return hf


def log_probabilities(found, task):
    return [sample["resps"] for sample in found["samples"][task]]


def ours(model, pipeline, task, data, **settings):
    lm = PipelineLM(model, Setting(Pipeline.parse(pipeline), **settings), silent)
    return harness_results(lm, task, data, limit=4, shots=settings.get("shots"), seed=0)[0]


def theirs(model, task, data, shots=0):
    configured = ConfigurableTask(config=config_of(task, rows_of(task, data)) | {"num_fewshot": shots})
    configured.set_fewshot_seed(seed=0)
    lm = HFLM(pretrained=untouched(model), tokenizer=copy.deepcopy(model.tokenizer), batch_size=1, device="cpu")
    return evaluate(lm, {"tasks": {task: configured}, "groups": {}}, limit=4, bootstrap_iters=10)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
@pytest.mark.parametrize("task", ["arc_easy", "winogrande"])
def test_the_dense_model_has_exactly_the_log_probabilities_of_the_harness(family, task):
    model = wrap(tiny.transformer(family, torch.float32), tiny.tokenizer(), f"tiny-{family}")
    found = log_probabilities(ours(model, "dense", task, TASKS), task)
    assert found == log_probabilities(theirs(model, task, TASKS), task)
    assert len({log_p for sample in found for ((log_p, _),) in sample}) > 3


@pytest.mark.parametrize("task", ["arc_easy", "piqa"])
def test_and_so_it_has_of_the_embedded_model_on_real_questions(smollm, task):
    data = SHARED
    if not (SHARED / f"{task}.jsonl").exists():
        warnings.warn(f"{SHARED} is absent: only the committed questions are tested", stacklevel=1)
        task, data = "arc_easy", TASKS
    found = log_probabilities(ours(smollm, "dense", task, data), task)
    assert found == log_probabilities(theirs(smollm, task, data), task)


def test_a_recorded_pipeline_that_drops_nothing_scores_as_the_dense_model():
    model = tiny.model()
    dense = log_probabilities(ours(model, "dense", "arc_easy", TASKS), "arc_easy")
    kept = log_probabilities(ours(model, "eviction=h2o(budget=500)", "arc_easy", TASKS), "arc_easy")
    np.testing.assert_allclose(
        np.hstack([np.ravel(s) for s in kept]), np.hstack([np.ravel(s) for s in dense]), atol=1e-9
    )


@pytest.mark.parametrize("density", [None, 0.3])
def test_a2sf_that_forgets_nothing_is_h2o_without_a_recent_window(density):
    model = tiny.model()
    a2sf = ours(model, "eviction=a2sf(budget=12, forgetting_factor=1.0)", "arc_easy", TASKS, density=density)
    h2o = ours(model, "eviction=h2o(budget=12, recent_share=0.0)", "arc_easy", TASKS, density=density)
    dense = ours(model, "dense", "arc_easy", TASKS)
    assert log_probabilities(a2sf, "arc_easy") == log_probabilities(h2o, "arc_easy")
    assert log_probabilities(a2sf, "arc_easy") != log_probabilities(dense, "arc_easy")


def test_the_table_is_worked_out_from_the_questions():
    model = tiny.model()
    found = accuracy(model, ["arc_easy"], "eviction=tova(budget=8)", data=TASKS, density=0.25)
    items = found.items.set_index(["metric", "item"])["value"]
    for row in found.table.to_dict("records"):
        values = items[row["metric"]].to_numpy()
        assert row["n"] == len(values) == 4 and (row["task"], row["split"], row["shots"]) == (
            "arc_easy",
            "arc_easy.jsonl",
            0,
        )
        assert row["value"] == pytest.approx(values.mean())
        assert row["stderr"] == pytest.approx(values.std(ddof=1) / math.sqrt(4))
    rows = rows_of("arc_easy", TASKS)
    lengths = [
        len(f"Question: {r['question']}\nAnswer: {c}") - 1 for r in rows for c in r["choices"]
    ]  # bytes are tokens
    # `2` and `metre` differ in their last byte alone from no other choice: every choice is a forward, but `4` and `5` share one
    lengths.remove(len("Question: What is two and two?\nAnswer: 5") - 1)
    shares = [max(8, round(n * 0.25)) / n for n in lengths]
    assert found.table["kv_share"].iloc[0] == pytest.approx(sum(shares) / len(shares))


def test_few_shot_prompts_hold_other_questions_of_the_file():
    model = tiny.model()
    with_two = accuracy(model, ["winogrande"], data=TASKS, shots=1)
    assert with_two.table["shots"].tolist() == [1]
    one, none = (log_probabilities(harness(model, shots), "winogrande") for shots in (1, 0))
    assert one != none


def harness(model, shots):
    return harness_results(
        PipelineLM(model, Setting(Pipeline()), silent), "winogrande", TASKS, limit=2, shots=shots, seed=0
    )[0]


def with_start():
    """A tokenizer that starts every text with its start token."""
    from tokenizers import processors

    raw = copy.deepcopy(tiny.tokenizer().backend_tokenizer)
    tokenizer = type(tiny.tokenizer())(tokenizer_object=raw, eos_token="<|end|>", bos_token="<|end|>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|end|> $A", special_tokens=[("<|end|>", tiny.END)]
    )
    return tokenizer


@pytest.mark.parametrize(("add_bos", "starts"), [("auto", 1), ("yes", 1), ("no", 0)])
@pytest.mark.parametrize("spelled", [False, True])
def test_there_are_never_two_start_tokens(add_bos, starts, spelled):
    model = wrap(tiny.transformer("llama"), with_start(), "tiny-start")
    lm = PipelineLM(model, Setting(Pipeline(), add_bos=add_bos), silent)
    context, continuation = lm._encode_pair("<|end|>" * spelled + "Question", " answer")
    assert (context + continuation).count(tiny.END) == max(starts, spelled)
    assert len(continuation) == len(" answer")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            '{"question": "?", "gold": 0}',
            "arc_easy.jsonl, line 2: the field 'choices' is missing; it has 'question', 'gold'",
        ),
        ('["no", "object"]', "arc_easy.jsonl, line 2: it is no JSON object"),
        ("{", "arc_easy.jsonl, line 2: it is no JSON object"),
        (
            '{"question": "?", "choices": ["one"], "gold": 0}',
            "line 2: the field 'choices' is a list of two texts or more",
        ),
        (
            '{"question": "?", "choices": ["a", "b"], "gold": 2}',
            "line 2: the field 'gold' is the index of a choice, 0 to 1",
        ),
        ('{"question": " ", "choices": ["a", "b"], "gold": 0}', "line 2: the field 'question' is a text"),
    ],
)
def test_a_row_that_is_wrong_is_named(tmp_path, line, sentence):
    first = (TASKS / "arc_easy.jsonl").read_text().splitlines()[0]
    (tmp_path / "arc_easy.jsonl").write_text(f"{first}\n{line}\n")
    with pytest.raises(ValueError, match=sentence):
        accuracy(tiny.model(), ["arc_easy"], data=tmp_path)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"tasks": ["arc_esy"]}, "no task 'arc_esy' that is read from files; did you mean 'arc_easy'"),
        ({"tasks": ["piqa"]}, "holds no piqa.jsonl; it holds arc_easy.jsonl, winogrande.jsonl"),
        ({"tasks": []}, "tasks is a list of names"),
        ({"limit": 0}, "limit is at least 1"),
        ({"shots": -1}, "shots is 0 or more"),
        ({"density": 0.2}, "density sets the budget of the eviction stage, which dense leaves empty"),
        ({"density": 2, "pipeline": "eviction=h2o"}, "density is the share"),
        ({"pipeline": "prefill=minference"}, "minference looks ahead.*an answer has no probability"),
        ({"data": Path("/nowhere")}, "there is no folder /nowhere"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_a_sentence(asked, sentence):
    given = {"tasks": ["arc_easy"], "data": TASKS, "pipeline": "dense"} | asked
    with pytest.raises(ValueError, match=sentence):
        accuracy(tiny.model(), given.pop("tasks"), **given)


@pytest.mark.slow  # it reads the names of 14,000 tasks
def test_an_unknown_task_of_the_hub_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="there is no task 'arc_esy'; did you mean 'arc_easy'"):
        accuracy(tiny.model(), ["arc_esy"])


def test_without_the_harness_the_command_says_what_to_install(monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "lm_eval" else found(name, *rest)
    )
    assert main(["eval", "--tasks", "arc_easy", "--data", str(TASKS)]) == 2
    assert "lm_eval is not installed: pip install 'sparselens[eval]'" in capsys.readouterr().err


def test_the_command_prints_the_rows_as_json(smollm, tmp_path, capsys):
    shutil.copy(TASKS / "arc_easy.jsonl", tmp_path)
    arguments = ["eval", "--tasks", "arc_easy", "--data", str(tmp_path), "--limit", "1", "--density", "0.5"]
    arguments += ["--pipeline", "eviction=a2sf", "--device", "cpu", "--dtype", "float32", "--json"]
    assert main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(row["task"], row["metric"], row["n"]) for row in found["rows"]] == [
        ("arc_easy", m, 1) for m in ("acc", "acc_norm")
    ]
    assert found["rows"][0]["stderr"] is None  # of one question
    assert 0.4 < found["rows"][0]["kv_share"] < 0.6


@pytest.mark.parametrize(
    "pipeline", ["dense", "eviction=h2o", "decode=double_sparsity(tokens=0.25, dense_layers=0, channels=8)"]
)
def test_requests_that_share_a_forward_are_scored_as_alone(pipeline):
    model = tiny.model()
    how = {"data": TASKS, "density": 0.5 if "h2o" in pipeline else None}
    alone, together = (accuracy(model, ["arc_easy", "winogrande"], pipeline, batch_size=n, **how) for n in (1, 5))
    pd.testing.assert_frame_equal(together.table, alone.table, rtol=1e-9)
    pd.testing.assert_frame_equal(together.items, alone.items)


def test_and_so_are_answers_that_are_generated():
    texts = ["The 12 cats sat on 3 mats, and", "Who saw them all? Ann saw", "One two three four five six seven"]
    most = (6, 6, 4)
    requests = [
        Instance("generate_until", {"before": text[:9]}, (text, {"max_gen_toks": n, "until": ["e"]}), place)
        for place, (text, n) in enumerate(zip(texts, most, strict=True))
    ]

    def answers(batch_size):
        setting = Setting(
            Pipeline.parse("eviction=snapkv(observation_window=4)"),
            density=0.4,
            question="unknown",
            batch_size=batch_size,
        )
        lm = PipelineLM(tiny.model(), setting, silent)
        return lm.generate_until(requests), sorted(lm.kv_shares)

    assert answers(1) == answers(2) == answers(8)


def test_a_batch_of_no_requests_is_refused():
    with pytest.raises(ValueError, match="batch_size is 1 or more requests that share a forward; got 0"):
        accuracy(tiny.model(), ["arc_easy"], data=TASKS, batch_size=0)
