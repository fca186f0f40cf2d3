"""Training a compressed model back towards what it lost: LoRA on its linear layers, merged into a plain checkpoint."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

import torch

from sparsity_core.models import Model, calibration_text, decoder_layers, windows, wrap
from sparsity_core.weights.activations import next_token_loss
from sparsity_core.weights.compressed import CompressedModel
from sparsity_core.weights.ffn import set_weight, shared_copy, weight_of
from sparsity_core.work import Progress, silent

_WARM_UP = 0.1  # of the steps


def recover(
    compressed: CompressedModel,
    *,
    text: str | None = None,
    steps: int = 100,
    rank: int = 8,
    learning_rate: float = 1e-3,
    length: int = 256,
    batch: int = 2,
    seed: int = 0,
    progress: Progress = silent,
    distil: bool = False,
) -> CompressedModel:
    """The same cut with weights trained on `text`, the calibration text where None; what is given is unchanged.

    LoRA (Hu et al., arXiv:2106.09685) through peft on every linear layer of the decoder, scaled by 2 (α = 2 · rank), under
    AdamW, the learning rate rising and falling as a cosine. Rows and columns of zeros, which fill narrow layers
    or silence heads, stay zeros. `extra["recovery"]` has the loss of each step.

    Args:
        steps: each of `batch` random stretches of `length` tokens.
        distil: learn the next-token distributions of the model before the cut, KL(before ‖ after), not the text itself.

    Raises ValueError for settings out of range or a text shorter than one stretch, and what `progress` raises.
    """
    _check(compressed.model, steps, rank, learning_rate, length, batch)
    began = time.perf_counter()
    given = calibration_text() if text is None else text
    drawn = windows(compressed.model, given, count=steps * batch, length=length, seed=seed)
    hf, trained = _with_adapters(compressed.model, rank, seed)
    student = replace(compressed.model, hf=hf.base_model.model)
    losses = _train(student, compressed.base if distil else None, trained, drawn, steps, learning_rate, progress)
    merged = hf.merge_and_unload()
    notes = compressed.notes
    if "rank" in compressed.extra:
        notes = (*notes, f"Recovery added a matrix of rank {rank} to each matrix of low rank.")
    recovery = {
        "text": "default" if text is None else "given",
        "steps": steps,
        "batch": batch,
        "length": length,
        "rank": rank,
        "learning_rate": learning_rate,
        "seed": seed,
        "distil": distil,
        "losses": [round(loss, 5) for loss in losses],
    }
    return replace(
        compressed,
        model=wrap(_plain(compressed.model, merged), compressed.model.tokenizer, f"{compressed.model.name} recovered"),
        seconds=compressed.seconds + time.perf_counter() - began,
        notes=notes,
        extra={**compressed.extra, "recovery": recovery},
    )


def _check(model: Model, steps: int, rank: int, learning_rate: float, length: int, batch: int) -> None:
    for name, value in (("steps", steps), ("rank", rank), ("batch", batch)):
        if value < 1:
            raise ValueError(f"{name} is at least 1; got {value}")
    if not 0.0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate is above 0; got {learning_rate}")
    if not 2 <= length <= model.arch.max_positions:
        raise ValueError(
            f"length is 2 to {model.arch.max_positions:,} tokens, the positions of {model.name}; got {length}"
        )


def _with_adapters(model: Model, rank: int, seed: int) -> tuple[Any, list[torch.nn.Parameter]]:
    """A peft model of its own target weights, which merging changes in place, and the parameters to train."""
    from peft import LoraConfig, get_peft_model

    hf = shared_copy(model.hf)
    targets = _linear(hf, model)
    for module in targets.values():
        set_weight(module, weight_of(module).clone(), module.bias)
    conv1d = any(type(module).__name__ == "Conv1D" for module in targets.values())
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(targets), fan_in_fan_out=conv1d)
    wrapped = get_peft_model(hf, config).eval()  # no dropout
    generator = torch.Generator().manual_seed(seed)
    trained = []
    for name in targets:
        layer = hf.get_submodule(name)
        alive = weight_of(layer.base_layer) != 0
        rows, columns = alive.any(1)[:, None], alive.any(0)
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight  # [rank, in], [out, rank]
        drawn = torch.rand(a.shape, generator=generator).mul(2).sub(1) / math.sqrt(a.shape[1])  # peft's own range
        with torch.no_grad():
            a.copy_(drawn.to(a.device) * columns)
        a.register_hook(lambda grad, live=columns: grad * live)
        b.register_hook(lambda grad, live=rows: grad * live)
        trained += [a, b]
    return wrapped, trained


def _linear(hf: Any, model: Model) -> dict[str, Any]:
    """Every linear layer within the decoder's layers, by its full name."""
    inside = {id(m) for layer in decoder_layers(hf, model.arch.n_layers) for m in layer.modules()}
    return {
        name: module
        for name, module in hf.named_modules()
        if id(module) in inside and type(module).__name__ in ("Linear", "Conv1D")
    }


def _train(
    student: Model,
    teacher: Model | None,
    trained: list[torch.nn.Parameter],
    drawn: torch.Tensor,
    steps: int,
    learning_rate: float,
    progress: Progress,
) -> list[float]:
    """The mean loss of each step."""
    optimiser = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate_share(step, steps))
    losses: list[float] = []
    with torch.inference_mode(False), torch.enable_grad():
        for step, batch in enumerate(drawn.unflatten(0, (steps, -1))):
            progress(step / steps, f"step {step + 1} of {steps}" + (f", loss {losses[-1]:.3f}" if losses else ""))
            total = 0.0
            for window in batch:  # one at a time: the logits of a large vocabulary are the most memory
                loss = next_token_loss(student, window) if teacher is None else _divergence(teacher, student, window)
                (loss / len(batch)).backward()
                total += float(loss.detach()) / len(batch)
            if not math.isfinite(total):
                raise ValueError(f"the loss of step {step + 1} is not a number: choose a smaller learning_rate")
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()
            losses.append(total)
    progress(1.0, f"loss {losses[-1]:.3f}")
    return losses


def rate_share(step: int, steps: int) -> float:
    """The share of the learning rate that a step takes: sin²(π s / 2), s rising to 1 over the warm-up and falling to 0."""
    warm_up = max(1, round(_WARM_UP * steps))
    s = (step + 1) / warm_up if step < warm_up else 1.0 - (step - warm_up) / max(1, steps - warm_up)
    return math.sin(0.5 * math.pi * s) ** 2


def _divergence(teacher: Model, student: Model, window: torch.Tensor) -> torch.Tensor:
    """Mean KL(teacher ‖ student) of the next-token distributions, nats."""
    with torch.no_grad():
        wanted = teacher.logits(teacher.hidden(window[None], use_cache=False)[0]).log_softmax(-1)
    found = student.logits(student.hidden(window[None], use_cache=False)[0]).log_softmax(-1)
    return torch.nn.functional.kl_div(found, wanted.to(found.device), reduction="batchmean", log_target=True)


def _plain(model: Model, merged: Any) -> Any:
    """`model`'s transformers model with the merged weights and nothing of peft's."""
    hf = shared_copy(model.hf)
    for name, module in _linear(hf, model).items():
        set_weight(module, weight_of(merged.get_submodule(name)), module.bias)
    return hf
