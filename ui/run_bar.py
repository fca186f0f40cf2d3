"""The sidebar that every page shares: model, prompt, method and its knobs, Run, progress and Cancel."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import streamlit as st

from sparsity_core.kinds import Pipeline
from sparsity_core.models import ADD_BOS, PROMPTS, QUESTION
from sparsity_core.record import RunSpec, question_of
from sparsity_core.work import Job, explain, read_text
from ui import shared, work
from ui.address import places_of, read_model
from ui.first_look import painted
from ui.knobs import folded, held
from ui.lineup import choose_pipelines
from ui.literal import literal
from ui.model_facts import count_tokens, most_positions
from ui.session import EXAMPLE, MOST_NEW, MOST_SEED, forget_view, keep_address, specs
from ui.trust import may_look_up, trust

_OWN = "own"
_MODELS = [EXAMPLE.model]
_CHEAP_LETTERS, _CHEAP_NEW = 4000, 32


@st.fragment
def run_bar() -> None:
    """Draws the bar; pressing Run queues what is not stored yet and shows it when it is done.

    A setting changes nothing on the page before that, so it draws the bar alone again.
    """
    first = specs()[0]
    place = st.container()  # Run comes before what it runs, so that a keyboard reaches it without passing every setting
    wanted, problems = _form(first)
    for problem in problems:
        st.warning(literal(problem), icon=":material/warning:")
    pressed = place.button(
        "Run",
        key="run",
        type="primary",
        icon=":material/play_arrow:",
        width="stretch",
        disabled=bool(problems) or work.pending("run"),
        help="compute what the settings below ask for; results are kept and found again",
    )
    if pressed:
        _press(wanted)
    _forget_failure(wanted)
    work.watch("run", _finished)
    if wanted != specs() and not work.pending("run") and not problems:
        st.caption("The settings differ from what is shown: press Run.")
    warning = st.session_state.get("warning")
    if warning:
        st.warning(literal(shared.told(warning)))
    _status(first.model)


def _press(wanted: list[RunSpec]) -> None:
    """Queues what Run was pressed for; what is stored is shown at once."""
    failures = st.session_state.setdefault("failures", {})
    failures.pop("run", None)
    st.session_state.problem = None
    try:
        for spec in wanted:
            shared.check_pressed(spec)
    except ValueError as error:
        failures["run"] = explain(error)
        st.rerun()
    for spec in wanted:
        trust(places_of(spec.model, spec.pipeline))
    st.session_state.wanted = st.session_state.wanted_address = wanted
    if not work.submit_specs("run", wanted):
        _show(wanted)
    keep_address({})  # at once, so that a reload finds the run again
    st.rerun()


def follow_link() -> None:
    """Begins by itself what a link asks for and nobody has computed, where that is cheap or already under way.

    All else waits for Run: whoever made the link may have asked for hours of work.
    """
    wanted = specs()
    if st.session_state.get("followed") == wanted or work.pending("run"):
        return
    st.session_state.followed = wanted
    few = len(wanted) * len(wanted[0].prompt) <= 2 * _CHEAP_LETTERS
    if all((few and _is_cheap(spec)) or work.is_under_way(spec) for spec in wanted):
        st.session_state.wanted = wanted
        work.submit_specs("run", wanted)


def _is_cheap(spec: RunSpec) -> bool:
    """Whether a run takes seconds: the embedded model, whole, on a short text."""
    return (
        spec.model == EXAMPLE.model
        and 0 < len(spec.prompt.strip()) <= _CHEAP_LETTERS
        and spec.generate <= _CHEAP_NEW
        and Pipeline.parse(spec.pipeline).weights is None
        and may_look_up(spec)
    )


def _forget_failure(wanted: list[RunSpec]) -> None:
    """A failed run's sentence goes as soon as a setting is changed."""
    failures = st.session_state.get("failures", {})
    if not failures.get("run"):
        st.session_state.pop("failed_with", None)
    elif st.session_state.setdefault("failed_with", wanted) != wanted:
        del failures["run"]


def _finished(jobs: dict[str, Job]) -> None:
    work.keep_results(jobs)
    _show(st.session_state.wanted)


def _show(wanted: list[RunSpec]) -> None:
    if wanted[0].prompt != specs()[0].prompt or wanted[0].model != specs()[0].model:
        st.session_state.view = {}  # positions of another text mean nothing here
        forget_view()
    st.session_state.specs = wanted
    st.rerun()


def _form(first: RunSpec) -> tuple[list[RunSpec], list[str]]:
    """What the settings ask for, and what is wrong with them. Draws every setting, whatever is wrong with another."""
    st.session_state.setdefault("model", first.model)
    model = st.selectbox(
        "Model",
        sorted({*_MODELS, first.model, st.session_state.model or first.model}),
        key="model",
        accept_new_options=True,
        help="the embedded model, a Hugging Face hub id (owner/name), or a local folder; type to enter one",
    )
    prompt, problems = _prompt(first), list[str]()
    if not prompt.strip():
        problems.append("The prompt is empty: type some text, or choose one from the library.")
    tokens = count_tokens(model, prompt)
    about = f"about {max(1, len(prompt) // 4):,} tokens (exact once it is run)"
    st.caption(f"{tokens:,} token{'' if tokens == 1 else 's'}" if tokens else about)
    pipelines, wrong = choose_pipelines()
    problems += wrong
    generate, seed, device, dtype, add_bos, question = _run_settings(first)
    positions = most_positions(model)
    if tokens and positions and tokens + generate > positions:
        new = f" and {generate:,} new ones" if generate else ""
        problems.append(
            f"The prompt has {tokens:,} tokens{new}, and {model} reads at most {positions:,}: shorten it by "
            f"{tokens + generate - positions:,}."
        )
    base = RunSpec(str(model or "").strip(), prompt, pipelines[0], generate, seed, device, dtype, add_bos, question)
    if question == "unknown" and prompt.strip() and question_of(prompt) is None:
        problems.append(
            "No question is found in the prompt, so it cannot be unknown: write it as “Question: … Answer:”, end the prompt with "
            "a question, or choose auto under Run settings."
        )
    try:
        read_model(base.model)
        for text in pipelines:
            shared.check(replace(base, pipeline=text))
            Pipeline.parse(text).check(generates=generate > 0)
    except ValueError as error:
        problems.append(explain(error))
    return [base, *(replace(base, pipeline=p) for p in pipelines[1:])], problems


def _run_settings(first: RunSpec) -> tuple[int, int, str, str, str, str]:
    """(tokens to generate, seed, device, number format, start token, whether the question is known)."""
    with folded("Run settings", "run_settings") as opened:
        generate = held(
            "generate",
            first.generate,
            lambda: st.number_input(
                "Generated tokens",
                0,
                MOST_NEW,
                key="generate",
                help="0: read the prompt alone. Above: the model goes on, and what is evicted physically leaves its cache",
            ),
            drawn=opened,
        )
        seed = held(
            "seed",
            first.seed,
            lambda: st.number_input("Seed", 0, MOST_SEED, key="seed", help="used by random eviction"),
            drawn=opened,
        )
        device, dtype = _numbers(first, opened)
        add_bos = held(
            "add_bos",
            first.add_bos,
            lambda: st.selectbox(
                "Start token",
                ADD_BOS,
                key="add_bos",
                help="auto: as the tokenizer does; a prompt never starts with two",
            ),
            drawn=opened,
        )
        question = held(
            "question",
            first.question,
            lambda: st.selectbox(
                "Question",
                QUESTION,
                key="question",
                help="unknown: the prompt is compressed up to its question, which comes after, a token at a time. known: what "
                "is compressed includes it. auto: known where tokens are generated; else a cut comes after half of the text",
            ),
            drawn=opened,
        )
        if opened:
            st.caption(work.memory_held())
    return int(generate), int(seed), device, dtype, add_bos, question


def _numbers(first: RunSpec, drawn: bool) -> tuple[str, str]:
    """(device, number format); which formats there are depends on the device."""
    devices = ["cuda", "cpu"] if _has_cuda() else ["cpu"]
    if first.device not in devices:
        devices.append(first.device)
    device = held(
        "device",
        devices[0] if first == EXAMPLE else first.device,  # the example was computed on a CPU
        lambda: st.selectbox(
            "Device",
            devices,
            key="device",
            on_change=lambda: st.session_state.pop("dtype", None),  # each has its own best
            help="cuda appears where this machine has an NVIDIA GPU; a model too large for one is spread over several",
        ),
        drawn=drawn,
    )
    dtypes = ["float32"] if device == "cpu" else ["bfloat16", "float16", "float32"]
    dtypes += ["int8"] if find_spec("torchao") else []  # the extra that quantises
    if st.session_state.get("dtype") not in dtypes:
        st.session_state.pop("dtype", None)
    dtype = held(
        "dtype",
        first.dtype if first != EXAMPLE and first.dtype in dtypes else dtypes[0],
        lambda: st.selectbox(
            "Number format", dtypes, key="dtype", help="int8: the weights alone, a scale for each row"
        ),
        drawn=drawn,
    )
    return device, dtype


def _prompt(first: RunSpec) -> str:
    if "prompt_text" not in st.session_state:
        st.session_state.prompt_text = first.prompt
        st.session_state.prompt_choice = next((n for n, p in PROMPTS.items() if p.text == first.prompt), _OWN)

    def choose() -> None:
        st.session_state.pop("prompt_problem", None)
        if st.session_state.prompt_choice in PROMPTS:
            st.session_state.prompt_text = PROMPTS[st.session_state.prompt_choice].text

    def upload() -> None:
        file = st.session_state.prompt_file
        st.session_state.pop("prompt_problem", None)
        if file is None:
            return
        try:
            st.session_state.prompt_text = read_text(file.name, file.getvalue())
            st.session_state.prompt_choice = _OWN
        except ValueError as error:
            st.session_state.prompt_problem = str(error)

    def edit() -> None:
        st.session_state.pop("prompt_problem", None)
        st.session_state.prompt_choice = next(
            (n for n, p in PROMPTS.items() if p.text == st.session_state.prompt_text), _OWN
        )

    choice = st.selectbox(
        "Prompt",
        [*PROMPTS, _OWN],
        format_func=lambda name: PROMPTS[name].title if name in PROMPTS else "Your own text",
        key="prompt_choice",
        on_change=choose,
    )
    if choice in PROMPTS:
        st.caption(PROMPTS[choice].why)
    text = st.text_area("Text", key="prompt_text", height=150, on_change=edit, label_visibility="collapsed")
    with folded("Upload a text file", "upload") as opened:
        if opened:
            st.file_uploader("UTF-8 text, at most 5 MB", key="prompt_file", on_change=upload)
    if "prompt_problem" in st.session_state:
        st.warning(literal(f"{st.session_state.prompt_problem}. The text above is unchanged."))
    return text


def _has_cuda() -> bool:
    """Whether an NVIDIA driver is present; asking torch would import it before the first picture."""
    return Path("/dev/nvidiactl").exists() or Path("/proc/driver/nvidia/version").exists()


def _status(model: str) -> None:
    """Says whether the embedded model is ready, once it is, without a touch."""
    if model != EXAMPLE.model:
        return

    def loading() -> Job | None:
        return work.warm_up(model, start=painted())  # until then the first picture needs the cores

    def told() -> None:
        job = loading()
        states = {"done": "ready", "failed": "not loaded", "cancelled": "not loaded"}
        st.caption(f"{literal(model)}: {states.get(job.status if job else '', 'loading in the background')}")
        if job and job.status == "failed":
            st.caption(literal(job.error))
        if job and job.finished and not finished:
            st.rerun()  # drawn again, this asks no more

    job = loading()
    finished = job is not None and job.finished
    st.fragment(told, run_every=None if finished else 0.4)()
