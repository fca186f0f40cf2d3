"""RULER's tasks: worded and scored as lm-evaluation-harness has them, of the length asked for, the same from the same seed."""

from __future__ import annotations

import functools
import importlib
import random
import re
import sys
import types
from collections import Counter

import pytest
import torch
from transformers import AutoModelForCausalLM

from sparsity_core import Pipeline, generate
from sparsity_core.cli.main import main
from sparsity_core.evaluate.accuracies import accuracy
from sparsity_core.evaluate.grids import read_grid
from sparsity_core.evaluate.harness import PipelineLM, Setting, harness_results
from sparsity_core.evaluate.ruler import LENGTH, RULER_TASKS, ruler_rows, string_match, words
from sparsity_core.models.loading import wrap
from sparsity_core.work import silent
from tests import tiny


@pytest.fixture
def theirs(monkeypatch):
    """A module of lm-evaluation-harness's RULER. The word lists that it takes from a package are ours."""
    kinds = ("noun", "nouns", "verb", "verbs", "adjective", "adjectives")
    listed = types.SimpleNamespace(_categories={kind: words() if kind.startswith("n") else ["same"] for kind in kinds})
    monkeypatch.setitem(sys.modules, "wonderwords", types.SimpleNamespace(RandomWord=lambda: listed))
    monkeypatch.setenv("LOCAL_RANK", "1")
    return lambda name: importlib.import_module(f"lm_eval.tasks.ruler.{name}")


def ours(name: str, units: int, length: int = LENGTH):
    return RULER_TASKS[name].make(random.Random(1), units, length)


def without_what_is_drawn(text: str) -> str:
    """The text with every drawn name and number replaced by what kind it is of."""
    for pattern, kind in (
        (r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", "UUID"),
        (r"\b[a-z]+-[a-z]+\b", "KEY"),
        (r"\b[0-9]{7}\b", "SEVEN"),
        (r"\b[0-9]{5}\b", "FIVE"),
        (r"\b(?!VAR)[A-Z]{5}\b", "NAME"),
        (r"\b(?!VAR)[A-Z]{3}\b", "SHORT"),
    ):
        text = re.sub(pattern, kind, text)
    return text


@pytest.mark.parametrize(
    ("name", "haystack", "key", "value"),
    [
        ("niah_single_1", "repeat", "words", "numbers"),
        ("niah_multikey_2", "needle", "words", "numbers"),
        ("niah_multikey_3", "needle", "uuids", "uuids"),
    ],
)
def test_needles_are_worded_as_the_harness_words_them(theirs, name, haystack, key, value):
    niah, prepare = theirs("niah_utils"), theirs("prepare_niah")
    asked, answers, query = prepare.generate_input_output(
        6, prepare.get_haystack(haystack), type_haystack=haystack, num_needle_k=1, type_needle_k=key, num_needle_v=1,
        type_needle_v=value, template=niah.TEMPLATE,
    )  # fmt: skip
    found = ours(name, 6)
    own, other = (without_what_is_drawn(text).split("\n") for text in (found.context + found.question, asked))
    assert (own[0], own[-1], Counter(own)) == (other[0], other[-1], Counter(other)) and len(own) == 9
    assert len(answers) == len(found.answers) == 1 and (found.context).count(found.answers[0]) == 1
    key = re.search(r"for (\S+) mentioned", found.question)[1]
    assert f"One of the special magic {value} for {key} is: {found.answers[0]}." in found.context.split("\n")
    prefix = f"The special magic {value[:-1]} for {query} mentioned in the provided text is"  # in `generate_samples`
    assert found.prefix == prefix.replace(query, key)


def test_chains_are_worded_as_the_harness_words_them(theirs):
    vt = theirs("vt_utils")
    asked, answers = vt.generate_input_output(12, 1, 4)
    found = ours("vt", 12)
    text = f"{found.context}{found.question} {found.prefix} "
    own, other = (Counter(re.findall(r"\S+|\s", without_what_is_drawn(t))) for t in (text, asked))
    assert own == other
    assert len(found.answers) == len(answers) == 5
    chain = re.findall(r"VAR ([A-Z]{5}) = (?:VAR )?([A-Z]{5}|[0-9]{5})", found.context)
    value = re.search(r"assigned the value ([0-9]{5})", found.question)[1]
    assert chain == list(zip(found.answers, (value, *found.answers), strict=False))

    (row,) = ruler_rows("vt", lambda text: len(text.split()), length=1000, n=1, seed=0)
    tokenizer = lambda text: types.SimpleNamespace(input_ids=text.split())  # noqa: E731
    solved = vt.sys_vartrack_w_noise_random(tokenizer=tokenizer, num_samples=1, max_seq_length=500, incremental=5)[0]
    (other,) = vt.sys_vartrack_w_noise_random(tokenizer, 1, 1000, icl_example=solved)
    noise = re.compile(r"The grass is green.*?There and back again\.\n ?")
    (own, _), (example, _) = (noise.sub("", t).split("\n\n\n\n") for t in (row["asked"], other["input"]))
    assert Counter(without_what_is_drawn(own).split()) == Counter(without_what_is_drawn(example).split())
    assert own.split("\n")[-1].count("SHORT") == 0 and len(set(re.findall(r"\b(?!VAR)[A-Z]{3}\b", own))) == 5


def test_words_are_listed_as_the_harness_lists_them(theirs):
    cwe, fwe = theirs("cwe_utils"), theirs("fwe_utils")
    for length, often, seldom in ((LENGTH, 30, 3), (1024, 6, 1)):
        found = ours("cwe", 40, length)
        _, asked, answers = cwe.generate_input_output(40, length)
        told, listed, question = found.context.rpartition("\n")[0], found.context.split("\n")[1], found.question
        assert f"{told}\n" in cwe.TEMPLATE and asked.endswith(f"{question} {found.prefix}")
        counts = Counter(re.findall(r"\d+\. ([a-z]+)", listed))
        assert {counts[word] for word in found.answers} == {often} and len(found.answers) == len(answers) == 10
        theirs_listed = re.findall(r"\d+\. ([a-z]+)", asked.split("\n")[1])
        assert sorted(counts.values()) == sorted(Counter(theirs_listed).values()) and {seldom, often} == {
            *counts.values()
        }
        assert re.findall(r"(\d+)\. ", listed) == [str(n) for n in range(1, counts.total() + 1)]

    tokenizer = lambda text: types.SimpleNamespace(input_ids=[])  # noqa: E731
    asked, answers, _ = fwe.generate_input_output(LENGTH, tokenizer, num_words=500, vocab_size=LENGTH // 50)
    found = ours("fwe", 500)
    told = found.context.partition("words. ")[0] + "words. "
    assert asked.startswith(told) and asked.endswith(f"{found.question} {found.prefix}")
    own, other = (text.split("\n")[0].removeprefix(told).split() for text in (found.context, asked))
    assert [n for _, n in Counter(own).most_common()] == [n for _, n in Counter(other).most_common()]
    assert [word for word, _ in Counter(own).most_common(4)] == ["...", *found.answers]


def test_the_score_is_the_harness_own(theirs):
    match = theirs("common_utils").string_match_all
    for answers, written in (
        (["Ab", "cd", "ef"], "x AB ef"),
        (["1234567"], " 1234567."),
        (["1234567"], "123456"),
        (["a", "a"], ""),
    ):
        assert string_match({"answers": answers}, [written]) == {"string_match": match([written], [answers])}


@pytest.mark.parametrize("name", RULER_TASKS)
def test_prompts_fill_the_length_and_come_from_the_seed(name):
    def count(text: str) -> int:
        return len(re.findall(r"\w+|\W", text))

    made = {seed: ruler_rows(name, count, length=2000, n=3, seed=seed) for seed in (0, 0, 1)}
    for rows in made.values():
        lengths = [count(f"{row['asked']} {row['prefix']}") + RULER_TASKS[name].new_tokens for row in rows]
        assert all(1800 < length <= 2001 for length in lengths)
        assert len({row["asked"] for row in rows}) == 3
        assert all(row["asked"].startswith(row["before"]) for row in rows)
    assert made[0] == ruler_rows(name, count, length=2000, n=3, seed=0) != made[1]
    with pytest.raises(ValueError, match=f"{name} does not fit 40 tokens: its shortest prompt and answer have"):
        ruler_rows(name, count, length=40, n=1, seed=0)


@functools.cache
def long_model():
    torch.manual_seed(3)
    config = tiny.CONFIGS["llama"](max_position_embeddings=2048)
    hf = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    return wrap(hf.eval().requires_grad_(False), tiny.tokenizer(), "tiny-long")


def test_what_is_written_is_what_generate_writes_with_the_question_known_and_unknown():
    model, pipeline = long_model(), "eviction=snapkv(budget=100)"
    (row,) = ruler_rows("fwe", lambda text: len(text.encode()), length=900, n=1, seed=0)
    prompt = f"{row['asked']} {row['prefix']}"
    expected = {
        asked: generate(
            model, prompt, pipeline, max_new_tokens=50, n_prefill=n_prefill, snapshots=0, against_dense=False
        ).text
        for asked, n_prefill in (("known", None), ("unknown", len(row["before"].encode())))
    }
    assert expected["known"] != expected["unknown"]
    for question, written in expected.items():
        lm = PipelineLM(model, Setting(Pipeline.parse(pipeline), question=question), silent)
        found, splits = harness_results(lm, "fwe", None, limit=1, shots=None, seed=0, length=900)
        (sample,) = found["samples"]["fwe"]
        assert sample["arguments"][0][0] == prompt and sample["resps"] == [[written]]
        assert splits == {"fwe": "made of seed 0, 900 tokens"}


def test_they_stand_beside_other_tasks_and_in_the_table(tmp_path):
    found = accuracy(
        long_model(), ["fwe"], "prefill=minference eviction=tova", length=900, limit=2, density=0.5, question="unknown"
    )
    (row,) = found.table.to_dict("records")
    assert (row["task"], row["metric"], row["n"], row["question"]) == ("fwe", "string_match", 2, "unknown")
    assert row["value"] == found.items["value"].mean() and 0.4 < row["kv_share"] < 0.6
    (tmp_path / "grid.yaml").write_text("models: m\ntasks: [vt, fwe]\nlength: 900\nquestion: unknown\nlimit: 2")
    cells = list(read_grid(tmp_path / "grid.yaml").cells())
    assert [(cell.task, cell.length, cell.question) for cell in cells] == [
        ("vt", 900, "unknown"),
        ("fwe", 900, "unknown"),
    ]


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"tasks": ["niah_single_2"], "data": "."}, "there is no task 'niah_single_2' .* did you mean 'niah_single_1'"),
        ({"shots": 2}, "vt takes no solved examples"),
        ({"length": 0}, "length is the tokens of a prompt and its answer"),
        ({"length": 100_000}, "length is at most 320, the positions of tiny-llama; got 100,000"),
        ({"length": 300}, "vt does not fit 300 tokens: its shortest prompt and answer have"),
        ({"tasks": ["arc_easy"], "length": 300}, "of the tasks niah_single_1, .* alone; got 300"),
        ({"tasks": ["arc_easy"], "question": "unknown"}, "the question of arc_easy is always known"),
        ({"question": "no"}, "question is known or unknown .* got 'no'"),
    ],
)
def test_what_cannot_be_asked_is_a_sentence(asked, sentence):
    with pytest.raises(ValueError, match=sentence):
        accuracy(tiny.model(), **({"tasks": ["vt"]} | asked))


def test_the_command_takes_them(capsys):
    assert main(["eval", "--tasks", "vt,arc_easy", "--length", "900", "--shots", "1"]) == 2
    assert "vt takes no solved examples" in capsys.readouterr().err


@pytest.mark.slow
def test_the_embedded_model_finds_a_needle_and_loses_it_with_its_keys(smollm):
    dense = accuracy(smollm, ["niah_single_1"], length=512, limit=3)
    local = accuracy(smollm, ["niah_single_1"], "eviction=streaming_llm", length=512, limit=3, density=0.1)
    assert dense.table["value"].tolist() == [1.0] and local.table["value"].tolist() == [0.0]
