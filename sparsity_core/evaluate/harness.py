"""lm-evaluation-harness on a model in memory under a pipeline: what it asks, and what it is answered."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from lm_eval import evaluate
from lm_eval.api.model import TemplateLM
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from sparsity_core.evaluate.densities import at_density
from sparsity_core.evaluate.local_tasks import config_of, rows_of, task_file
from sparsity_core.evaluate.ruler import LENGTH, MOST_EXAMPLES, RULER_TASKS, ruler_config, ruler_rows
from sparsity_core.inference import generate_batch, one_at_a_time, read_logits_batch
from sparsity_core.kinds import Pipeline, nearest
from sparsity_core.models import Model
from sparsity_core.work import Progress

T = TypeVar("T")

_RESAMPLES = 1000  # of metrics whose standard error has no formula; accuracy's has one
_MOST_NEW = 256  # tokens that a task generates where it says nothing, as in lm-evaluation-harness


@dataclass(frozen=True)
class Setting:
    """How requests are read."""

    pipeline: Pipeline
    density: float | None = None
    add_bos: str = "auto"
    seed: int = 0
    question: str = "known"  # unknown: a prompt that has one apart is read up to it, and the rest a token at a time
    batch_size: int = 1  # requests that share a forward


class PipelineLM(TemplateLM):  # type: ignore[misc]
    """A language model as lm-evaluation-harness sees one. Requests of about one length share a forward, padded at its
    end, each followed by stages of its own; with a `batch_size` of 1 each is read alone.

    log p(continuation | context) = Σ_t log softmax(logits_t)[token_t], every token of the text a decode step, as in `run`. A
    method of one cut makes it where the continuation begins.

    Raises ValueError where a batch is asked for and the model or the pipeline takes one text at a time.
    """

    def __init__(self, model: Model, setting: Setting, progress: Progress) -> None:
        if setting.batch_size > 1 and (why := one_at_a_time(model, [setting.pipeline], caches=True)):
            raise ValueError(f"{why}: set batch_size to 1")
        super().__init__()
        self.model, self.setting, self._progress = model, setting, progress
        self.tokenizer = model.tokenizer
        self.kv_shares: list[float] = []  # of each forward or generation

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What an empty context is read as."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        if add_special_tokens is False:
            return self.model.encode_all(string)
        return self.model.encode(string, self.setting.add_bos)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        return list(super().loglikelihood(requests, disable_tqdm=True))

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """(log-probability, whether every token was the likeliest) of each (…, context, continuation).

        Requests that differ in the last token alone share a forward, as the choices A, B, C and D do.
        """
        same: dict[tuple[int, ...], list[int]] = {}
        for place, (_, context, continuation) in enumerate(requests):
            same.setdefault((len(context), *context, *continuation[:-1]), []).append(place)
        found: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        done = 0
        for keys in self._batches(list(same), lambda key: len(key)):
            self._progress(done / len(requests), f"request {done + 1:,} of {len(requests):,}")
            rows = [len(requests[same[key][0]][2]) for key in keys]
            for key, log_p in zip(keys, self._log_p(keys, rows), strict=True):
                for place in same[key]:
                    tokens = torch.tensor(requests[place][2], device=log_p.device)
                    picked = log_p.gather(1, tokens[:, None])[:, 0]
                    found[place] = float(picked.sum()), bool((log_p.argmax(-1) == tokens).all())
                    done += 1
        return found

    def _log_p(self, keys: list[tuple[int, ...]], rows: list[int]) -> Iterator[torch.Tensor]:
        """[rows, vocabulary] of each: log-probabilities of what follows its last tokens; a key is a context's length, and ids."""
        texts, setting = [list(ids) for _, *ids in keys], self.setting
        pipelines = [at_density(setting.pipeline, setting.density, len(ids)) for ids in texts]
        cuts = [n_context for n_context, *_ in keys]
        for logits, share in read_logits_batch(
            self.model, texts, pipelines, rows=rows, n_prefill=cuts, seed=setting.seed
        ):
            self.kv_shares.append(share)
            yield logits.log_softmax(-1)

    def _batches(self, asked: list[T], length: Callable[[T], int]) -> Iterator[list[T]]:
        """What is asked in batches of about one length, the longest first."""
        ordered = sorted(asked, key=length, reverse=True) if self.setting.batch_size > 1 else asked
        for start in range(0, len(ordered), self.setting.batch_size):
            yield ordered[start : start + self.setting.batch_size]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        """Σ log p of each whole text, in windows of the model's positions that do not overlap."""
        longest = self.model.arch.max_positions
        totals = []
        for (text,) in (request.args for request in requests):
            ids = self.tok_encode(text, add_special_tokens=False)
            windows = get_rolling_token_windows(ids, self.prefix_token_id, max_seq_len=longest, context_len=1)
            parts = [(None, *make_disjoint_window(window)) for window in windows]
            totals.append(sum(log_p for log_p, _ in self._loglikelihood_tokens(parts)))
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        asked = [self._asked(request) for request in requests]
        texts, done = [""] * len(requests), 0
        for places in self._batches(list(range(len(asked))), lambda place: len(asked[place].ids)):
            self._progress(done / len(requests), f"request {done + 1:,} of {len(requests):,}")
            for most in sorted({asked[place].most for place in places}):
                alike = [place for place in places if asked[place].most == most]
                for place, text in zip(alike, self._written([asked[place] for place in alike], most), strict=True):
                    stops = [text.index(stop) for stop in asked[place].until if stop and stop in text]
                    texts[place] = text[: min(stops, default=len(text))]
            done += len(places)
        return texts

    def _asked(self, request: Any) -> _Request:
        """Raises ValueError for a task whose answers are drawn at random."""
        context, how = request.args
        if how.get("do_sample") and how.get("temperature"):
            raise ValueError("this task draws its answers at random, which is not offered: choose one that does not")
        until, ids, n_prefill = how.get("until") or [], self.tok_encode(context), None
        before = (request.doc or {}).get("before")  # the part of the context that stands before its question
        if before is not None and self.setting.question == "unknown":
            same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(ids, self.tok_encode(before), strict=False))
            n_prefill = sum(1 for _ in same)
        most = how.get("max_gen_toks") or how.get("max_new_tokens") or _MOST_NEW
        return _Request(ids, n_prefill, int(most), [until] if isinstance(until, str) else list(until))

    def _written(self, asked: list[_Request], most: int) -> list[str]:
        """What the model writes after each context."""
        setting = self.setting
        found = generate_batch(
            self.model,
            [each.ids for each in asked],
            [at_density(setting.pipeline, setting.density, len(each.ids)) for each in asked],
            n_prefill=[each.n_prefill for each in asked],
            max_new_tokens=most,
            seed=setting.seed,
            snapshots=0,
            against_dense=False,
        )
        self.kv_shares += [out.kv_bytes / out.kv_bytes_dense for out in found]
        return [out.text for out in found]


@dataclass(frozen=True)
class _Request:
    """A context after which the model writes."""

    ids: list[int]
    n_prefill: int | None
    most: int  # new tokens
    until: list[str]  # what is written ends before the first of these


def harness_results(
    lm: PipelineLM,
    name: str,
    data: Path | None,
    *,
    limit: int | None,
    shots: int | None,
    seed: int,
    length: int | None = None,
) -> tuple[dict[str, Any], dict[str, str]]:
    """What lm-evaluation-harness finds of a task, a group or a tag, and the split of each task that it read.

    Raises ValueError for an unknown task and a file that cannot be read.
    """
    with _quiet():
        made = _made(lm, name, length or LENGTH, limit or MOST_EXAMPLES, seed) if name in RULER_TASKS else None
        loaded = made or _loaded(name, data)
        for task in loaded["tasks"].values():
            if shots is not None or task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=shots or 0)
            task.set_fewshot_seed(seed=seed)
        found = evaluate(lm, loaded, limit=limit, bootstrap_iters=_RESAMPLES)
    if made:
        return found, {name: f"made of seed {seed}, {length or LENGTH:,} tokens"}
    splits = {n: _split_of(task) if data is None else task_file(n, data).name for n, task in loaded["tasks"].items()}
    return found, splits


def _made(lm: PipelineLM, name: str, length: int, n: int, seed: int) -> dict[str, Any]:
    """A task of RULER. Raises ValueError for a length that the model cannot read, or that holds no prompt."""
    longest = lm.model.arch.max_positions
    if longest and length > longest:
        raise ValueError(f"length is at most {longest:,}, the positions of {lm.model.name}; got {length:,}")
    encode = lm.model.encode_all
    start = len(lm.tok_encode("x")) - len(encode("x"))
    rows = ruler_rows(name, lambda text: start + len(encode(text)), length=length, n=n, seed=seed)
    return {"tasks": {name: ConfigurableTask(config=ruler_config(name, rows))}, "groups": {}}


def _loaded(name: str, data: Path | None) -> dict[str, Any]:
    if data is not None:
        return {"tasks": {name: ConfigurableTask(config=config_of(name, rows_of(name, data)))}, "groups": {}}
    manager = TaskManager()
    if name not in manager.all_tasks:
        raise ValueError(f"there is no task {name!r}; {_like(name, manager.all_tasks)}")
    try:
        return dict(manager.load([name]))
    except Exception as error:  # offline, gated, a data set that needs another package: each has a class of its own
        raise ValueError(
            f"the task {name} cannot be read from the hub ({type(error).__name__}): go online, or give a folder of files "
            "with --data (data=)"
        ) from error


def _like(name: str, known: Sequence[str]) -> str:
    told = nearest(name, known)
    return told if told.startswith("did") else "`lm-eval ls tasks` lists them"


def _split_of(task: Any) -> str:
    return str(task.config.test_split if task.has_test_docs() else task.config.validation_split)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the harness's own bars and warnings off the terminal, which shows ours."""
    log = logging.getLogger("lm_eval")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with open(os.devnull, "w") as nothing, contextlib.redirect_stderr(nothing):
            yield
    finally:
        log.setLevel(level)
