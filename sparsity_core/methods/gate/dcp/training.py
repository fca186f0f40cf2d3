"""Training a gate: the model's own text loss, or its distance to the dense model, plus what is kept, times γ.

    loss = (KL(dense ‖ gated) or −log p of the next token) + γ · mean of I below the diagonal

a rises from 1 to 8 as a cosine over the run, so that the gate starts soft and ends as a step, which it is in use.
"""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from sparselens_kernels import is_card
from torch.optim.lr_scheduler import LambdaLR

from sparsity_core.methods.gate.dcp.adapter import Gate
from sparsity_core.methods.gate.dcp.records import Training
from sparsity_core.methods.gate.dcp.sigmoid import log_keep
from sparsity_core.models import AttentionCall, Model, attention_input, calibration_text, recording, windows, wrap
from sparsity_core.work import Progress, read_checkpoint, silent, write_checkpoint

_INITIAL_BIAS = 2.0
_INITIAL_STD = 0.02
_EVERY = 20  # steps from one checkpoint to the next


class SoftGate:
    """A recorder whose attention is gated by log I, differentiable in the gate's weights; text of one length, no cache."""

    def __init__(self, gate: Gate, a: float) -> None:
        self.gate, self.a = gate, a
        self.kept: list[torch.Tensor] = []  # each layer's mean of I below the diagonal
        self._above: torch.Tensor | None = None  # log I of the layers so far, where drops propagate

    def attend(self, call: AttentionCall) -> torch.Tensor:
        q, k, layer, window = call.q, call.k, call.layer, call.window
        gate_q, gate_k = self.gate.project(layer, attention_input(layer))
        log_i = log_keep((gate_q @ gate_k.mT).float() + self.gate.bias[layer], self.a)  # [B, T, T]
        if self.gate.propagate_in_depth:
            log_i = log_i if self._above is None else log_i + self._above
            self._above = log_i
        n = q.shape[2]
        below = torch.ones(n, n, dtype=torch.bool, device=q.device).tril_(-1)
        self.kept.append(log_i[:, below].exp().mean())
        query, key = torch.arange(n, device=q.device)[:, None], torch.arange(n, device=q.device)
        hidden_keys = (key > query) if window is None else (key > query) | (key <= query - window)
        mask = log_i.masked_fill(hidden_keys, -math.inf)[:, None, None]
        grouped = q.unflatten(1, (k.shape[1], -1))
        logits = (grouped @ k.mT[:, :, None]).float() * call.scale
        logits = logits if call.softcap is None else call.softcap * torch.tanh(logits / call.softcap)
        return (torch.softmax(logits + mask, -1).to(call.v.dtype) @ call.v[:, :, None]).flatten(1, 2)


def initial_gate(model: Model, training: Training) -> Gate:
    """Random interaction weights around a bias that keeps, as the paper starts."""
    generator = torch.Generator().manual_seed(training.seed)
    shape = (model.arch.n_layers, training.rank, model.arch.hidden_size)
    query, key = (_INITIAL_STD * torch.randn(shape, generator=generator) for _ in range(2))
    bias = torch.full((model.arch.n_layers,), _INITIAL_BIAS)
    return Gate(query, key, bias, training.propagate_in_depth)


def train_gate(
    model: Model,
    training: Training | None = None,
    *,
    text: str | None = None,
    start: Gate | None = None,
    checkpoint: str | Path | None = None,
    progress: Progress = silent,
    on_step: Callable[[list[float], list[float]], None] = lambda loss, kept: None,
) -> tuple[Gate, Model]:
    """A gate for this model, and the model it belongs to: the same one, or its trained copy where `base_rate` > 0.

    The gate's `recipe` has all settings, the text's hash, and the curve: loss and kept share of every step. `start` goes
    on from another gate of the same model, with its rank and kind, for a family of γ of which each is a short training.

    Args:
        text: the calibration text where None.
        checkpoint: a file written every few steps and when the training is stopped; a training that finds it goes on from
            it, with the same result as one that was never interrupted. Remove it once the gate is saved: a process that
            is killed before goes on from it. A disk that refuses it costs the checkpoint, not the training.
        progress: told every step; whatever it raises stops the training.
        on_step: given the curve so far, loss and kept, after every step.

    Raises ValueError for a text shorter than a stretch, a family whose attention input is not seen, or a checkpoint of
    another training.
    """
    training = training or Training()
    _check_length(model, training.length)
    if start is not None:
        start.check(model)
        training = replace(training, rank=start.rank, propagate_in_depth=start.propagate_in_depth)
    given = calibration_text() if text is None else text
    drawn = windows(
        model, given, count=training.steps * training.batch, length=training.length, seed=training.seed
    ).unflatten(0, (training.steps, training.batch))
    began = time.perf_counter()
    recipe = {
        "model": model.name,
        "fingerprint": model.fingerprint,
        **asdict(training),
        "text": "default" if text is None else "given",
        "text_blake2b": hashlib.blake2b(given.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest(),
        "start": None if start is None else start.digest(),
    }
    with torch.inference_mode(False), torch.enable_grad():
        run = _Run(model, training, start or initial_gate(model, training), recipe, checkpoint)
        run.resume()
        try:
            for step in range(run.step, training.steps):
                progress(step / training.steps, run.told())
                run.take(drawn[step])
                on_step(run.curve["loss"], run.curve["kept"])
                if run.step % _EVERY == 0:
                    run.save()
        except BaseException:
            run.save()
            raise
    progress(1.0, run.told())
    return run.finished(time.perf_counter() - began)


def _check_length(model: Model, length: int) -> None:
    if not 2 <= length <= model.arch.max_positions:
        raise ValueError(
            f"length is 2 to {model.arch.max_positions:,} tokens, the positions of {model.name}; got {length:,}"
        )


class _Run:
    """The state of a training: the weights, AdamW's moments, and the curve."""

    def __init__(
        self, model: Model, training: Training, gate: Gate, recipe: dict[str, Any], checkpoint: str | Path | None
    ) -> None:
        self.model, self.training, self.recipe = model, training, recipe
        self.file = None if checkpoint is None else Path(checkpoint)
        self.step, self.refused = 0, ""
        self.curve: dict[str, list[float]] = {"loss": [], "kept": []}
        weights = [t.detach().to(model.device, torch.float32).clone().requires_grad_() for t in gate.tensors()]
        self.gate = replace(gate, query=weights[0], key=weights[1], bias=weights[2], recipe={})
        groups: list[dict[str, Any]] = [{"params": weights, "lr": training.learning_rate}]
        if training.base_rate:
            self.model = replace(model, hf=copy.deepcopy(model.hf))
            self.model.hf.requires_grad_(True)
            groups.append({"params": list(self.model.hf.parameters()), "lr": training.base_rate})
        self.reference = model
        self.optimiser = torch.optim.AdamW(groups, weight_decay=0.0)
        self.schedule = LambdaLR(self.optimiser, training.rate)
        self.trained = [weight for group in groups for weight in group["params"]]

    def take(self, batch: torch.Tensor) -> None:
        """One step over stretches int64 [batch, T]."""
        training, a = self.training, self.training.sharpness(self.step)
        gamma = training.gamma if self.step >= training.delay else 0.0
        loss, kept = 0.0, 0.0
        for window in batch:
            soft = SoftGate(self.gate, a)
            with self._mixed(), recording(soft):
                hidden = self.model.hidden(window[None], use_cache=False)[0]
            away, held = self._away(hidden, window), torch.stack(soft.kept).mean()
            ((away + gamma * held) / len(batch)).backward()
            loss, kept = loss + float(away.detach()) / len(batch), kept + float(held.detach()) / len(batch)
        if not math.isfinite(loss):
            raise ValueError(f"the loss of step {self.step + 1} is not a number: choose a smaller learning_rate")
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimiser.step()
        self.schedule.step()
        self.optimiser.zero_grad()
        self.step += 1
        self.curve["loss"].append(round(loss, 5))
        self.curve["kept"].append(round(kept, 5))

    def _away(self, hidden: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
        """How far the gated model is off, nats a token: from the dense model's distributions, or from the text."""
        log_p = self.model.logits(hidden).log_softmax(-1)
        if not self.training.distil:
            return torch.nn.functional.nll_loss(log_p[:-1], window[1:].to(log_p.device))
        with torch.no_grad(), self._mixed():
            wanted = self.reference.logits(self.reference.hidden(window[None], use_cache=False)[0]).log_softmax(-1)
        return torch.nn.functional.kl_div(log_p, wanted, reduction="batchmean", log_target=True)

    def _mixed(self) -> torch.autocast:
        on = is_card(self.model.device) and self.model.dtype == torch.float32
        return torch.autocast(self.model.device.type, dtype=torch.bfloat16, enabled=on)

    def told(self) -> str:
        if not self.step:
            return f"step 1 of {self.training.steps}"
        last = {name: sum(values[-10:]) / len(values[-10:]) for name, values in self.curve.items()}
        return (
            f"step {min(self.step + 1, self.training.steps)} of {self.training.steps}, {last['loss']:.3f} nats off, "
            f"{last['kept']:.0%} kept{self.refused}"
        )

    def resume(self) -> None:
        if self.file is None or not self.file.exists():
            return
        try:
            tensors, notes = read_checkpoint(self.file)
            settings, step, curve = notes["recipe"], int(notes["step"]), dict(notes["curve"])
        except (OSError, KeyError, TypeError, ValueError, SafetensorError):
            raise ValueError(f"{self.file} is no training that could go on: delete it to start again") from None
        if settings != self.recipe:
            other = next(name for name in self.recipe if settings.get(name) != self.recipe[name])
            raise ValueError(
                f"{self.file} holds a training with {other} {settings.get(other)}, not {self.recipe[other]}: delete it, or "
                "name another file"
            )
        with torch.no_grad():
            for i, weight in enumerate(self.trained):
                weight.copy_(tensors[f"weight.{i}"])
                self.optimiser.state[weight] = {
                    "step": torch.tensor(float(step)),
                    "exp_avg": tensors[f"first.{i}"].to(weight.device),
                    "exp_avg_sq": tensors[f"second.{i}"].to(weight.device),
                }
        self.schedule = LambdaLR(self.optimiser, self.training.rate, last_epoch=step - 1)
        self.step, self.curve = step, curve

    def save(self) -> None:
        if self.file is None or not self.step:
            return
        tensors: dict[str, torch.Tensor] = {}
        for i, weight in enumerate(self.trained):
            state = self.optimiser.state[weight]
            tensors |= {
                f"weight.{i}": weight.detach(),
                f"first.{i}": state["exp_avg"],
                f"second.{i}": state["exp_avg_sq"],
            }
        try:
            write_checkpoint(self.file, tensors, recipe=self.recipe, step=self.step, curve=self.curve)
            self.refused = ""
        except OSError as error:
            self.refused = f" (no checkpoint: {error.strerror or error})"

    def finished(self, seconds: float) -> tuple[Gate, Model]:
        query, key, bias = (t.detach().cpu() for t in self.gate.tensors())
        model = self.model
        if self.training.base_rate:
            self.model.hf.requires_grad_(False)
            model = wrap(self.model.hf, self.model.tokenizer, f"{self.reference.name} tuned")
        recipe = {
            **self.recipe,
            "model": model.name,
            "fingerprint": model.fingerprint,
            "seconds": round(seconds, 1),
            "device": str(model.device),
            "curve": self.curve,
        }
        return replace(self.gate, query=query, key=key, bias=bias, recipe=recipe), model
