"""The command line: one JSON object where asked for, a status, and never a traceback."""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sparsity_core import Trace, generate, methods
from sparsity_core.cli.main import main
from sparsity_core.record import loop_of
from sparsity_core.work.files import read_text
from tests import tiny

ROOT = Path(__file__).parents[2]
MODELS = importlib.import_module("sparsity_core.models")
A2SF = "eviction=a2sf(budget=8, forgetting_factor=0.5)"
PROMPT = "The harbour office opens at six, when the fog still hides the far pier."


@pytest.fixture
def with_tiny(monkeypatch):
    """The tiny model in place of the one that is named."""
    monkeypatch.setattr(MODELS, "load", lambda name, **options: tiny.model())


@pytest.fixture
def tiny_folder(tmp_path):
    folder = tmp_path / "model"
    tiny.transformer("llama", torch.float32).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def call(capsys, *arguments: str) -> tuple[int, str, str]:
    status = main(list(arguments))
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return status, out, err


def as_json(capsys, *arguments: str) -> dict:
    status, out, _ = call(capsys, *arguments, "--json")
    assert status == 0
    assert out.count("\n") == 1
    found = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert isinstance(found, dict)
    return found


def test_methods_and_their_knobs_are_listed(capsys):
    found = as_json(capsys, "methods")
    assert sorted(found) == methods.names()
    assert found["a2sf"]["stage"] == "eviction"
    assert found["a2sf"]["knobs"]["forgetting_factor"]["default"] == 0.3
    status, out, _ = call(capsys, "methods")
    assert status == 0
    assert all(f"={name}  " in out for name in found)
    assert found["a2sf"]["card"]["fails"] in call(capsys, "methods", "--markdown")[1]


def test_models_says_how_the_embedded_one_is_found(capsys):
    assert set(as_json(capsys, "models")) == {"smollm2-135m"}
    status, out, _ = call(capsys, "models")
    assert status == 0 and "Any hub id (owner/name) or local folder" in out


def test_a_run_of_the_embedded_model_gives_finite_numbers(capsys, smollm, tmp_path):
    found = as_json(
        capsys, "run", "--prompt", PROMPT, "--pipeline", A2SF, "--device", "cpu", "--out", str(tmp_path / "new")
    )
    assert (found["model"], found["pipeline"], found["dtype"]) == ("smollm2-135m", A2SF, "float32")
    assert found["tokens"] == len(smollm.encode(PROMPT)) > 10
    for name in ("perplexity", "dense_perplexity", "kl_to_dense", "density", "regret", "ideal_recall", "ideal_cosine"):
        assert math.isfinite(found[name]) and found[name] > 0
    assert found["density"] < 1 and found["ideal_recall"] <= 1
    assert found["kv_bytes"] == 30 * 3 * 8 * 64 * 2 * 4
    trace = Trace.load(found["trace"])
    assert found["trace"] == str(tmp_path / "new" / "trace.npz")
    assert trace.perplexity == pytest.approx(found["perplexity"], abs=1e-6)
    assert trace.n_tokens == found["tokens"]


def test_the_same_numbers_are_printed_as_text(capsys, with_tiny):
    found = as_json(capsys, "run", "--prompt", tiny.TEXT, "--pipeline", A2SF)
    status, out, _ = call(capsys, "run", "--prompt", tiny.TEXT, "--pipeline", A2SF)
    assert status == 0
    lines = dict(line.split(maxsplit=1) for line in out.splitlines() if line.strip())
    assert float(lines["perplexity"]) == found["perplexity"]
    assert lines["pipeline"] == A2SF


def test_generate_writes_text_and_counts_what_the_cache_holds(capsys, with_tiny, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_text("\ufeffThe 12 cats 🙂", encoding="utf-8")  # with the byte order mark that Windows editors write
    found = as_json(capsys, "generate", "--file", str(file), "--pipeline", A2SF, "--max-new-tokens", "5")
    assert found["prompt_tokens"] == len("The 12 cats ") + 4
    assert found["prompt_tokens"] <= found["tokens"] < found["prompt_tokens"] + 5
    assert isinstance(found["text"], str)
    assert found["kv_bytes"] == 3 * 2 * 8 * 16 * 2 * 8 < found["kv_bytes_dense"]
    again = as_json(capsys, "generate", "--file", str(file), "--pipeline", A2SF, "--max-new-tokens", "5")
    assert again["text"] == found["text"]


def test_generate_tells_how_far_its_text_went(capsys, with_tiny):
    asked = ("generate", "--prompt", PROMPT, "--pipeline", A2SF, "--max-new-tokens", "24", "--no-stop-at-eos")
    found = as_json(capsys, *asked)
    own, dense = (
        generate(tiny.model(), PROMPT, each, max_new_tokens=24, stop_at_eos=False).token_ids for each in (A2SF, None)
    )
    other = next(i for i, (a, b) in enumerate(zip(own, dense, strict=True)) if a != b)
    assert found["first_other_token"] == len(PROMPT) + other  # a character is a token of the tiny model
    assert (found["new_tokens"], found["ended"]) == (24, False)
    loop = loop_of(own)
    assert found["loop_period"] == (loop and loop[1])
    assert found["loop_at"] == (loop and len(PROMPT) + loop[0])


def test_a_question_that_is_not_known_is_asked_for_and_told(capsys, with_tiny):
    prompt = f"{PROMPT} Question: when? Answer:"
    found = as_json(capsys, "generate", "--prompt", prompt, "--max-new-tokens", "1", "--question", "unknown")
    assert found["question"] == "unknown"
    status, _, err = call(capsys, "run", "--prompt", PROMPT, "--question", "unknown")
    assert status == 2 and "no question is found in the prompt" in err


def test_numbers_that_do_not_exist_are_null(capsys, with_tiny, monkeypatch):
    found = as_json(capsys, "run", "--prompt", "x")
    assert found["tokens"] == 1
    assert found["perplexity"] is None and found["regret"] is None
    monkeypatch.setattr(Trace, "perplexity", property(lambda self: math.inf))
    assert as_json(capsys, "run", "--prompt", "xy")["perplexity"] is None


def test_a_run_that_drops_nothing_says_so(capsys, with_tiny):
    found = as_json(capsys, "run", "--prompt", "short", "--pipeline", "eviction=h2o(budget=64)")
    assert found["notes"] == [
        "Nothing was dropped: the text has 5 tokens and the budget is 64. Choose a smaller budget."
    ]


BAD = {
    "an empty prompt": (["--prompt", "  "], "the prompt is empty: type or choose some text"),
    "an unknown method": (["--prompt", "x", "--pipeline", "eviction=a2fs"], "did you mean 'a2sf'?"),
    "an unknown knob": (["--prompt", "x", "--pipeline", "eviction=a2sf(budgt=8)"], "did you mean 'budget'?"),
    "a knob out of range": (["--prompt", "x", "--pipeline", "eviction=a2sf(budget=0)"], "budget is at least 1; got 0"),
    "an empty pipeline": (["--prompt", "x", "--pipeline", ""], "write 'dense' for the plain model"),
    "no such model": (["--prompt", "x", "--model", "/no/such/folder"], "there is no folder /no/such/folder"),
    "no such device": (["--prompt", "x", "--device", "warp"], "there is no device 'warp'"),
    "no such dtype": (["--prompt", "x", "--dtype", "int4"], "there is no dtype 'int4'"),
    "no such file": (["--file", "/no/such/file"], "cannot read /no/such/file (No such file or directory)"),
    "a folder for a file": (["--file", "/"], "cannot read / (Is a directory)"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_status_2(capsys, case):
    arguments, sentence = BAD[case]
    for command in ("run", "generate"):
        status, out, err = call(capsys, command, *arguments, "--json")
        assert status == 2
        assert sentence in json.loads(out)["error"]
        assert err == f"error: {json.loads(out)['error']}\n"
    status, out, err = call(capsys, "run", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and sentence in err


FILES = {
    "binary.bin": (b"ab\x00cd", "binary.bin is a binary file: give plain text"),
    "latin.txt": ("café".encode("latin-1"), "latin.txt is not UTF-8 text: save it as plain text (UTF-8) first"),
    "utf16.txt": ("hello".encode("utf-16"), "utf16.txt is not UTF-8 text"),
    "empty.txt": (b"", "empty.txt is empty: give a file with some text"),
    "blank.txt": (b" \n", "blank.txt is empty"),
    "large.txt": (b"x" * (5 * 1024**2 + 1), "large.txt has 5 MB: give a text of at most 5 MB"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_prompt_is_refused(capsys, tmp_path, name):
    data, sentence = FILES[name]
    (tmp_path / name).write_bytes(data)
    status, out, _ = call(capsys, "run", "--file", str(tmp_path / name), "--json")
    assert status == 2 and sentence in json.loads(out)["error"]


def test_a_file_larger_than_the_memory_is_refused_unread(capsys, tmp_path):
    with (tmp_path / "huge.txt").open("wb") as file:
        file.truncate(2**42)  # a hole, which takes no room on the disk
    status, _, err = call(capsys, "run", "--file", str(tmp_path / "huge.txt"))
    assert status == 2 and "huge.txt has 4,194,304 MB: give a text of at most 5 MB" in err


def test_the_largest_text_is_read():
    assert len(read_text("t", b"x" * (5 * 1024**2))) == 5 * 1024**2


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["walk"],
        ["run"],
        ["run", "--prompt", "x", "--file", "y"],
        ["run", "--prompt", "x", "--seed", "one"],
        ["run", "--bad"],
    ],
    ids=str,
)
def test_a_command_that_cannot_be_read_is_status_2(capsys, arguments):
    status, out, err = call(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and "Usage: python -m sparsity_core" in err
    status, out, err = call(capsys, *arguments, "--json")
    assert status == 2 and err == f"error: {json.loads(out)['error']}\n"


def test_bad_numbers_are_refused(capsys, with_tiny):
    status, _, err = call(capsys, "generate", "--prompt", "x", "--max-new-tokens", "0")
    assert status == 2 and "--max-new-tokens is at least 1; got 0" in err
    status, _, err = call(capsys, "run", "--prompt", "x", "--seed", str(2**64))
    assert status == 2 and "the seed is a whole number of 64 bits" in err
    status, _, err = call(capsys, "generate", "--prompt", "x" * (tiny.MAX_POSITIONS - 4), "--max-new-tokens", "9")
    assert status == 2 and "generate at most 4" in err
    status, _, err = call(capsys, "run", "--prompt", "x" * (tiny.MAX_POSITIONS + 1))
    assert status == 2 and "shorten it by 1 tokens" in err


def test_an_out_that_cannot_be_written_is_refused(capsys, with_tiny, tmp_path):
    (tmp_path / "file").write_text("")
    status, _, err = call(capsys, "run", "--prompt", "xy", "--out", str(tmp_path / "file" / "below"))
    assert status == 2 and "cannot write to" in err and "(Not a directory): choose a folder you can write" in err


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (RuntimeError("it broke\nin two"), "The run failed (RuntimeError: it broke)."),
        (MemoryError(), "The machine ran out of memory: shorten the prompt"),
        (KeyboardInterrupt(), "stopped"),
    ],
    ids=lambda item: type(item).__name__,
)
def test_a_failed_run_is_a_sentence_and_status_1(capsys, monkeypatch, error, sentence):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr(MODELS, "load", fail)
    status, out, err = call(capsys, "run", "--prompt", "x", "--json")
    assert status == 1
    assert sentence in json.loads(out)["error"]
    assert err.count("\n") == 1


def process(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "sparsity_core", *arguments],
        cwd=ROOT,
        capture_output=True,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        check=False,
    )


def test_as_a_process_it_prints_json_alone(tiny_folder):
    done = process(
        "run",
        "--model",
        str(tiny_folder),
        "--prompt",
        "The 12 cats 🙂",
        "--pipeline",
        A2SF,
        "--device",
        "cpu",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["tokens"] == len("The 12 cats ") + 4
    assert found["model"] == str(tiny_folder)
    assert done.stdout.count(b"\n") == 1


def test_as_a_process_bad_input_is_one_line():
    done = process("run", "--prompt", "x", "--pipeline", "eviction=zzz", "--json")
    assert done.returncode == 2
    assert "there is no method 'zzz'" in json.loads(done.stdout)["error"]
    assert done.stderr.decode().startswith("error: there is no method 'zzz'")
    assert done.stderr.count(b"\n") == 1


def test_a_reader_that_goes_away_ends_it_quietly():
    command = [sys.executable, "-m", "sparsity_core", "methods"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        running.stdout.close()
        assert running.stderr.read() == ""
        assert running.wait() == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk without room, as Linux has it")
def test_an_answer_for_which_there_is_no_room_is_said():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "sparsity_core", "methods"], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr) == (1, "error: cannot write the answer (No space left on device)\n")


def test_a_console_that_cannot_write_a_character_gets_the_rest():
    done = process("methods", PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and done.stderr == b""
    assert b"eviction=a2sf" in done.stdout and rb"\u03b1" in done.stdout


def test_a_gate_is_trained_from_a_file_and_runs(capsys, tmp_path, tiny_folder):
    text, out = tmp_path / "text.txt", tmp_path / "out"
    text.write_text(PROMPT * 20)
    given = ["--model", str(tiny_folder), "--device", "cpu", "--out", str(out)]
    made = as_json(
        capsys, "train", "dcp", "--file", str(text), "--steps", "3", "--length", "32", "--gamma", "0.5", *given
    )
    assert made["recipe"]["steps"] == len(made["recipe"]["curve"]["kept"]) == 3
    gate = f"gate=dcp(adapter={made['gate']!r})"
    found = as_json(
        capsys, "run", "--prompt", PROMPT, "--model", str(tiny_folder), "--device", "cpu", "--pipeline", gate
    )
    assert found["pipeline"] == gate
    onward = as_json(
        capsys, "train", "dcp", "--steps", "1", "--length", "32", "--a-first", "3", "--start", made["gate"],
        "--no-distil", "--file", str(text), *given,
    )  # fmt: skip
    assert onward["recipe"]["start"] is not None and onward["recipe"]["distil"] is False
    tuned = as_json(
        capsys, "train", "dcp", "--steps", "1", "--length", "32", "--base-rate", "1e-4", "--file", str(text),
        "--model", str(tiny_folder), "--device", "cpu", "--out", str(tmp_path / "tuned"),
    )  # fmt: skip
    both = ["--model", str(tmp_path / "tuned" / "model"), "--device", "cpu", "--prompt", PROMPT]
    assert as_json(capsys, "run", *both, "--pipeline", f"gate=dcp(adapter={tuned['gate']!r})")["tokens"] > 1


def test_what_was_trained_is_never_overwritten(capsys, tmp_path, tiny_folder):
    text, out = tmp_path / "text.txt", tmp_path / "out"
    text.write_text(PROMPT * 20)
    command = ["--steps", "1", "--length", "32", "--file", str(text), "--model", str(tiny_folder), "--device", "cpu"]
    made = as_json(capsys, "train", "dcp", *command, "--out", str(out))
    before = Path(made["gate"]).read_bytes()
    status, _, err = call(capsys, "train", "dcp", *command, "--seed", "5", "--out", str(out))
    assert status == 2 and "exists already: choose another --out" in err
    assert Path(made["gate"]).read_bytes() == before


def test_compress_takes_weights_alone(capsys, tmp_path, tiny_folder):
    out = ["--model", str(tiny_folder), "--device", "cpu", "--out", str(tmp_path / "out")]
    status, _, err = call(capsys, "compress", "--weights", "row_norm(ratio=0.25) eviction=h2o", *out)
    assert status == 2 and "--weights takes one method that cuts weights" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gamma", "-1"], "gamma, what a kept pair costs, is at least 0; got -1"),
        (["--file", "short.txt", "--length", "64"], "fewer than one stretch of 64"),
        (["--hub", "one/two"], "a text of the hub is owner/name/file"),
        (["--start", "missing"], "there is no gate at missing.safetensors"),
        (["--model", "/no/such/folder"], "there is no folder /no/such/folder"),
    ],
)
def test_a_training_that_cannot_be_is_refused(capsys, tmp_path, monkeypatch, tiny_folder, arguments, said):
    monkeypatch.chdir(tmp_path)
    Path("short.txt").write_text("four")
    model = [] if "--model" in arguments else ["--model", str(tiny_folder)]
    status, out, err = call(capsys, "train", "dcp", *arguments, *model, "--device", "cpu", "--out", "out")
    assert status == 2 and not out
    assert said in err
