"""Learn what to cut or to drop, and keep it as a file."""

from __future__ import annotations

import argparse
from dataclasses import fields

from sparsity_core.cli import options as shared
from sparsity_core.methods.gate.dcp.records import Training
from sparsity_core.work import hub_text


def options(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(required=True, metavar="what")
    policy = kinds.add_parser("prunenet", help="PruneNet's policy, from the weights alone")
    policy.set_defaults(command=train_prunenet)
    policy.add_argument(
        "--variant",
        default="corrected",
        choices=("corrected", "official"),
        help="a policy gradient without the faults of the authors' code, or as their code has it",
    )
    shared.setting(policy, "ratio", 0.25, "share of the neurons that are cut")
    shared.setting(policy, "episodes", 20, "passes over all layers")
    shared.seed_option(policy)
    gate = kinds.add_parser("dcp", help="a gate of dynamic context pruning, from text")
    gate.set_defaults(command=train_dcp)
    text = gate.add_mutually_exclusive_group()
    shared.file_option(text, "a UTF-8 text to train on, not the default")
    text.add_argument("--hub", metavar="ID", help="a file of a hub dataset, owner/name/file.txt or .parquet")
    for item in fields(Training):
        shared.setting(gate, item.name, item.default, item.metadata["help"])
    gate.add_argument(
        "--start", type=shared.path, metavar="GATE", help="go on from a trained gate, with --a-first 3 or so"
    )
    factors = kinds.add_parser("a2sf", help="a forgetting factor for each layer and KV head, from text")
    factors.set_defaults(command=train_a2sf)
    shared.file_option(factors, "a UTF-8 text to fit on, not the default")
    shared.setting(factors, "ratios", "0.2, 0.4", "shares of a stretch that its cache may hold")
    shared.setting(factors, "blocks", 6, "random stretches of the text")
    shared.setting(factors, "length", 1024, "tokens of each")
    shared.seed_option(factors)
    for each in (policy, gate, factors):
        shared.model_options(each)
        shared.out_option(each)
        shared.json_option(each)


def answer(options: argparse.Namespace) -> shared.Answer:
    raise ValueError("say what to train: prunenet, dcp or a2sf")


def train_prunenet(options: argparse.Namespace) -> shared.Answer:
    from sparsity_core.methods.weights.prunenet.training import train_policy

    with shared.progress_bar() as progress, shared.writing(options.out):
        model = shared.load_model(options, progress)
        path = shared.new_file(options.out / f"prunenet-{options.variant}.safetensors")
        policy = train_policy(
            model,
            **shared.chosen(options, "variant", "ratio", "episodes", "seed"),
            progress=progress,
            checkpoint=options.out / "training.part",
        )
        policy.save(path)
        (options.out / "training.part").unlink(missing_ok=True)
    return {"policy": str(path), "recipe": policy.recipe}, f"written to {path}; use it with prunenet(policy='{path}')"


def train_a2sf(options: argparse.Namespace) -> shared.Answer:
    text = shared.text_of(options)
    from sparsity_core.methods.eviction.a2sf.fitting import fit_factors

    with shared.progress_bar() as progress, shared.writing(options.out):
        model = shared.load_model(options, progress)
        path = shared.new_file(options.out / f"a2sf-{model.fingerprint}.json")
        found = fit_factors(
            model, text, **shared.chosen(options, "ratios", "blocks", "length", "seed"), progress=progress
        )
        found.save(path)
    lost = zip(found.recipe["ratios"], found.recipe["lost"], found.recipe["lost_by_best_single"], strict=True)
    lines = [
        f"at {ratio:g}: {own:.2%} of the attention is lost, {one:.2%} by the best single factor"
        for ratio, own, one in lost
    ]
    lines.append(f"written to {path}; use it with a2sf(factors='{path}')")
    return {"factors": str(path), "recipe": found.recipe}, "\n".join(lines)


def train_dcp(options: argparse.Namespace) -> shared.Answer:
    training = Training(**shared.chosen(options, *(item.name for item in fields(Training))))
    text = hub_text(options.hub) if options.hub is not None else shared.text_of(options)
    from sparsity_core.methods.gate.dcp.adapter import Gate
    from sparsity_core.methods.gate.dcp.training import train_gate

    start = None if options.start is None else Gate.load(options.start)
    with shared.progress_bar() as progress, shared.writing(options.out):
        model = shared.load_model(options, progress)
        path = shared.new_file(options.out / f"dcp-{training.gamma:g}.safetensors")
        found, trained = train_gate(
            model, training, text=text, start=start, checkpoint=options.out / "training.part", progress=progress
        )
        if trained is not model:
            trained.hf.save_pretrained(options.out / "model")
            trained.tokenizer.save_pretrained(options.out / "model")
        path = found.save(path)  # last: until it stands, the checkpoint is what a killed training goes on from
        (options.out / "training.part").unlink(missing_ok=True)
    return {"gate": str(path), "recipe": found.recipe}, f"written to {path}; use it with gate=dcp(adapter='{path}')"
