"""Makes what ships, with which the pages open: `python -m ui.bundle [traces|spectra|channels|claims]` (`make assets`)."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib.metadata import version

from sparsity_core import studies
from sparsity_core.inference import execute
from sparsity_core.methods.decode.double_sparsity.channels import SHIPPED
from sparsity_core.models import evaluation_text
from sparsity_core.record import Store, key_of
from sparsity_core.work import write_whole
from ui.address import EXAMPLE, FIVE_STAGES, GATED, PATTERNED
from ui.spectra import RATIOS, example_method
from ui.sweeps import swept

_PASSAGES, _LETTERS = 16, 1600  # about 384 tokens each
DENSE = replace(EXAMPLE, pipeline="dense")
BESIDE = replace(EXAMPLE, pipeline="eviction=streaming_llm(budget=64)")


def bundled_specs() -> list:
    """What opens without a model: the example, the dense model's answer to it, what stands beside it first, all stages at once, a
    gate and a pattern alone, the example's sweep."""
    example = swept(EXAMPLE)
    return [EXAMPLE, DENSE, BESIDE, FIVE_STAGES, GATED, PATTERNED, *(example.specs.values() if example else ())]


def make_traces() -> None:
    folder = Store().assets
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {f"{key_of(spec)}.npz": spec for spec in bundled_specs()}
    for path in folder.glob("*.npz"):
        path.unlink()
    for name, spec in wanted.items():
        trace = execute(spec)
        write_whole(folder / name, trace.to_bytes(spec.to_json()))
        print(f"{name}  {(folder / name).stat().st_size / 1024:6.0f} KiB  {spec.pipeline}  generate={spec.generate}")


def make_studies() -> None:
    """Every weights method on the embedded model at one ratio, and the example at every ratio of the slider."""
    from sparsity_core.models import load

    model = load(EXAMPLE.model, device="cpu", dtype="float32")
    folder, found = studies.SHIPPED_SPECTRA, (model.fingerprint, model.dtype_name)
    for path in folder.glob("*/*.npz"):
        path.unlink()
    problems = [studies.keep_record(studies.study_uncut(model), *found, folder)]
    example, dense, contenders = example_method(), None, studies.contenders(studies.RATIO)
    defaults = {str(studies.at_ratio(type(m)(), studies.RATIO)) for m in contenders}
    for method in contenders:
        study, ranked = studies.study(model, method, dense=dense)
        dense = study.dense_perplexity
        problems.append(studies.keep_record(study if method == example else study.light(), *found, folder))
        if ranked is not None and ranked.method in defaults:  # one seed of a random baseline is enough
            problems.append(studies.keep_record(ranked, *found, folder))
        print(f"{method}  perplexity {study.perplexity:.2f} from {dense:.2f}")
    for ratio in RATIOS:
        method = studies.at_ratio(example, ratio)
        if method != example:
            study, _ = studies.study(model, method, perplexity=False)
            problems.append(studies.keep_record(study.light(), *found, folder))
            print(method)
    for problem in filter(None, problems):
        raise SystemExit(problem)


def make_channels() -> None:
    """The embedded model's calibration, with how far other stretches of the text agree with it."""
    from sparsity_core.methods.decode.double_sparsity.calibration import calibrate
    from sparsity_core.models import load
    from sparsity_core.studies import stability

    model = load(EXAMPLE.model, device="cpu", dtype="float32")
    found = calibrate(model)
    found = replace(found, recipe={**found.recipe, "stability": stability(model)})
    SHIPPED.mkdir(parents=True, exist_ok=True)
    found.save(SHIPPED / model.fingerprint)
    print(f"{model.fingerprint}  {found.recipe['stability']['shared']}")


def make_claims() -> None:
    """The passages that claims are measured on, and each claim's rows."""
    text, folder = evaluation_text(), studies.CLAIMS
    starts = [text.index("\n", at * len(text) // _PASSAGES) + 1 for at in range(_PASSAGES)]
    written = (json.dumps({"text": text[start : start + _LETTERS]}) for start in starts)
    write_whole(folder / "passages.jsonl", "".join(f"{line}\n" for line in written).encode())
    for claim in studies.claims():
        rows = studies.measure_claim(claim)
        versions = ", ".join(f"{name} {version(name)}" for name in ("sparselens", "torch", "transformers"))
        table = rows.to_csv(index=False, float_format="%.6g", lineterminator="\n")
        write_whole(folder / f"{claim.name}.csv", f"# {EXAMPLE.model}, float32, {versions}\n{table}".encode())
        print(f"{claim.name}  {studies.direction_of(claim, rows)}")


def main() -> None:
    wanted = sys.argv[1:] or ["traces", "spectra", "channels", "claims"]
    if "traces" in wanted:
        make_traces()
    if "spectra" in wanted:
        make_studies()
    if "channels" in wanted:
        make_channels()
    if "claims" in wanted:
        make_claims()


if __name__ == "__main__":
    main()
