"""lm-evaluation-harness on a model in memory under a pipeline: what it asks, and what it is answered."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lm_eval import evaluate
from lm_eval.api.model import TemplateLM
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from sparsity_core.evaluate.densities import at_density
from sparsity_core.evaluate.local_tasks import config_of, rows_of, task_file
from sparsity_core.evaluate.ruler import LENGTH, MOST_EXAMPLES, RULER_TASKS, ruler_config, ruler_rows
from sparsity_core.inference import generate, read_logits
from sparsity_core.kinds import Pipeline, nearest
from sparsity_core.models import Model
from sparsity_core.work import Progress

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


class PipelineLM(TemplateLM):  # type: ignore[misc]
    """A language model as lm-evaluation-harness sees one. Each request is read alone, so nothing is padded.

    log p(continuation | context) = Σ_t log softmax(logits_t)[token_t], every token of the text a decode step, as in `run`. A
    method of one cut makes it where the continuation begins.
    """

    def __init__(self, model: Model, setting: Setting, progress: Progress) -> None:
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
        for (n_context, *ids), places in same.items():
            self._progress(done / len(requests), f"request {done + 1:,} of {len(requests):,}")
            rows = len(requests[places[0]][2])
            log_p = self._log_p(ids, n_context, rows)
            for place in places:
                tokens = torch.tensor(requests[place][2], device=log_p.device)
                picked = log_p.gather(1, tokens[:, None])[:, 0]
                found[place] = float(picked.sum()), bool((log_p.argmax(-1) == tokens).all())
            done += len(places)
        return found

    def _log_p(self, ids: list[int], n_context: int, rows: int) -> torch.Tensor:
        """[rows, vocabulary]: log-probabilities of what follows each of the last tokens."""
        pipeline = at_density(self.setting.pipeline, self.setting.density, len(ids))
        logits, share = read_logits(self.model, ids, pipeline, rows=rows, n_prefill=n_context, seed=self.setting.seed)
        self.kv_shares.append(share)
        return logits[len(logits) - rows :].log_softmax(-1)

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
        texts = []
        for done, request in enumerate(requests):
            context, how = request.args
            self._progress(done / len(requests), f"request {done + 1:,} of {len(requests):,}")
            if how.get("do_sample") and how.get("temperature"):
                raise ValueError(
                    "this task draws its answers at random, which is not offered: choose one that does not"
                )
            until = how.get("until") or []
            most = how.get("max_gen_toks") or how.get("max_new_tokens") or _MOST_NEW
            text = self._written(context, int(most), (request.doc or {}).get("before"))
            stops = [text.index(s) for s in ([until] if isinstance(until, str) else until) if s and s in text]
            texts.append(text[: min(stops, default=len(text))])
        return texts

    def _written(self, context: str, most: int, before: str | None) -> str:
        """What the model writes after a context; `before` is the part of it that stands before its question."""
        setting = self.setting
        ids, n_prefill = self.tok_encode(context), None
        if before is not None and setting.question == "unknown":
            same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(ids, self.tok_encode(before), strict=False))
            n_prefill = sum(1 for _ in same)
        pipeline = at_density(setting.pipeline, setting.density, len(ids))
        out = generate(
            self.model,
            ids,
            pipeline,
            max_new_tokens=most,
            n_prefill=n_prefill,
            seed=setting.seed,
            snapshots=0,
            against_dense=False,
        )
        self.kv_shares.append(out.kv_bytes / out.kv_bytes_dense)
        return out.text


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
