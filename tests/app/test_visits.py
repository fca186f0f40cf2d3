"""The guided examples: what they say is true of what ships, and each step sets the app up by its link."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import numpy as np
import pytest

from sparsity_core.kinds import Pipeline
from sparsity_core.record import Store
from tests.app.test_app import app, open_page, said, visitor
from tests.app.visit import PICTURE, no_exception
from tests.server import settle
from ui.address import EXAMPLE, GATED, PATTERNED, read_address
from ui.visits import VISITS
from ui.visits import told as module

__all__ = ["app"]  # the fixture


def test_each_visit_takes_three_to_five_steps_on_what_ships_and_ends_with_the_claim() -> None:
    assert set(VISITS) == {"a2sf", "dcp", "double_sparsity", "prunenet", "assa"}
    for visit in VISITS.values():
        steps = visit.steps()
        assert 3 <= len(steps) <= 5
        assert steps[-1].choices == {"claim": visit.name}
        for step in steps:
            assert all(Store().get(spec) is not None for spec in step.specs), "a step would have to compute its run"
            assert len(step.told.split()) < 75 and step.look


def test_what_is_said_of_forgetting_is_so() -> None:
    forgets, clings = (Store().get(spec) for spec in (module.FORGETS, module.CLINGS))
    assert forgets and clings
    methods = [Pipeline.parse(trace.provenance.pipeline).eviction for trace in (forgets, clings)]
    assert [(m.budget, m.forgetting_factor) for m in methods] == [(64, 0.3), (64, 1.0)]
    first = [
        np.mean([[trace.keep(layer)[:, -1, :16] for layer in range(trace.n_layers)]]) for trace in (forgets, clings)
    ]
    assert first[0] < 0.1 and first[1] > 0.7  # "forgets" and "clings", of what the last query sees
    told = VISITS["a2sf"].steps()[0].told
    assert f"{first[0]:.0%} of the first 16" in told and told.endswith(f"B {first[1]:.0%}.")
    assert 0.3**10 < 1e-5
    assert "".join(forgets.tokens[122:126]) == "7421"
    assert max(module.kept_of(trace, slice(122, 126)) for trace in (forgets, clings)) < 0.15, "neither is safe"
    assert np.nanmean(clings.kl_to_dense) > 10 * np.nanmean(forgets.kl_to_dense)


def test_what_is_said_of_the_gate_is_so() -> None:
    trace = Store().get(GATED)
    assert trace
    gone = [np.mean(trace.dropped_by(layer).max(axis=0) >= 0) for layer in range(trace.n_layers)]
    told, layer = [step.told for step in VISITS["dcp"].steps()], int(np.argmax(gone))
    assert f"{np.mean(gone):.0%} of the tokens, over all layers; {max(gone):.0%} in layer {layer}." in told[0]
    by = trace.dropped_by(layer).max(axis=0)
    counts = sorted(((int((by == token).sum()), int(token)) for token in set(by[by >= 0].tolist())), reverse=True)
    (dropped, most), (second, _) = counts[:2]
    assert f"token {most}," in told[1] and f"drops {dropped} earlier" in told[1] and dropped > second
    assert all(key < token for key, token in enumerate(by) if token >= 0)


def test_what_is_said_of_spectra_is_so() -> None:
    found = module.ffn_studies()
    own = next(study for name, study in found.items() if name.startswith("prunenet"))
    chance = [study for name, study in found.items() if name.startswith("random")]
    best = min(found.values(), key=lambda study: study.perplexity)
    assert len(chance) == 3
    assert all(module.mean_gap(own) < module.mean_gap(study) for study in chance), "it does what it was trained for"
    assert all(own.perplexity > study.perplexity for study in chance), "and the model pays for it"
    assert module.mean_gap(best) > module.mean_gap(own), "no sign of a model that works"


def test_what_is_said_of_patterns_and_channels_is_so() -> None:
    trace = Store().get(PATTERNED)
    assert trace and trace.prefill
    assert Pipeline.parse(PATTERNED.pipeline).prefill.block == 32
    n, told = trace.n_prompt, [step.told for step in VISITS["assa"].steps()]
    seen = [trace.removed_by(layer)[:, :n, :n] == 0 for layer in range(trace.n_layers)]
    causal = np.tri(n, dtype=bool)
    share = np.mean([layer[:, causal].mean() for layer in seen])
    assert f"Here it shows {share:.0%} of the prompt's pairs" in told[0]
    coverage = np.nanmean(trace.prefill.coverage, axis=(1, 2))
    assert f"Layer {coverage.argmin()} has the least" in told[0] and told[1].startswith(f"Layer {coverage.argmax()} ")
    assert all((trace.removed_by(layer)[:, n:, :n] == 0).all() for layer in (0, 15)), "what is written sees all keys"
    assert "37.5% of what dense attention reads" in VISITS["double_sparsity"].steps()[2].told  # (1/4 + 2 · 1/4) / 2


@pytest.mark.parametrize("name", VISITS)
def test_the_link_of_a_step_asks_for_its_runs(name: str) -> None:
    for stop, step in enumerate(VISITS[name].steps(), 1):
        link = VISITS[name].link(stop)
        assert read_address(link).specs == step.specs
        assert (link["visit"], link["stop"]) == (name, str(stop))


@pytest.mark.parametrize("name", VISITS)
def test_a_step_draws_its_page_and_tells_itself(app: Any, name: str) -> None:
    visit = VISITS[name]
    for parameter, value in visit.link(1).items():
        app.query_params[parameter] = value
    app.run()
    if (page := visit.steps()[0].page) != "tokens":
        open_page(app, page)
    assert not app.exception
    assert any(f"step 1 of {len(visit.steps())}" in each.value for each in app.markdown)
    assert any(each.value == visit.steps()[0].told for each in app.markdown)
    assert app.button(key="visit_back").disabled
    assert (app.query_params["visit"], app.query_params["stop"]) == (name, "1")
    app.button(key="visit_end").click().run()
    assert not [each for each in app.button if each.key == "visit_next"]
    assert "visit" not in app.query_params


@pytest.mark.parametrize(
    ("visit", "stop"), [("nowhere", "1"), ("a2sf", "x"), ("a2sf", "99"), ("a2sf", "-1"), ("", "²")]
)
def test_a_link_may_say_anything(app: Any, visit: str, stop: str) -> None:
    app.query_params["visit"], app.query_params["stop"] = visit, stop
    app.run()
    assert not app.exception
    assert bool([each for each in app.button if each.key == "visit_end"]) == (visit == "a2sf")


def test_visits_begin_at_the_first_look_alone(app: Any, tmp_path: Path) -> None:
    app.run()
    assert [each.label for each in app.button if str(each.key).startswith("visit_")] == [
        visit.method for visit in VISITS.values()
    ]
    other = visitor(tmp_path)
    other.query_params["pipeline"], other.query_params["generate"] = EXAMPLE.pipeline + " ", "0"
    other.run()
    assert not [each for each in other.button if str(each.key).startswith("visit_")]
    assert "Guided" not in said(other)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_walks_every_guided_example_and_goes_back(browser: Any, address: str, scheme: str) -> None:
    from playwright.sync_api import expect

    for name, visit in VISITS.items():
        context = browser.new_context(viewport={"width": 1400, "height": 1000}, color_scheme=scheme)
        page = context.new_page()
        page.set_default_timeout(150_000)
        wrong: list[str] = []
        page.on("console", lambda told, wrong=wrong: wrong.append(told.text) if told.type == "error" else None)
        page.on("pageerror", lambda error, wrong=wrong: wrong.append(str(error)))
        page.goto(address)
        page.wait_for_selector(PICTURE)
        settle(page)
        page.get_by_role("button", name=visit.method, exact=True).click()
        steps = visit.steps()
        for at, step in enumerate(steps, 1):
            expect(page.get_by_text(f"step {at} of {len(steps)}")).to_be_visible(timeout=150_000)
            page.wait_for_url(lambda url, at=at: parse_qs(urlsplit(url).query).get("stop") == [str(at)])
            settle(page)
            path = urlsplit(page.url).path.strip("/")
            assert path == ("" if step.page == "tokens" else step.page)
            no_exception(page)
            told = parse_qs(urlsplit(page.url).query)
            assert all(told[place] == [str(value)] for place, value in step.view.items()), (name, at, told)
            if at < len(steps):
                page.get_by_role("button", name="Next", exact=True).click()
        page.go_back()
        expect(page.get_by_text(f"step {len(steps) - 1} of {len(steps)}")).to_be_visible(timeout=150_000)
        settle(page)
        no_exception(page)
        assert not wrong, (name, wrong)
        shared = context.new_page()
        shared.goto(f"{address}/{steps[1].page}?{urlencode(visit.link(2))}")
        expect(shared.get_by_text(f"step 2 of {len(steps)}")).to_be_visible(timeout=150_000)
        context.close()
