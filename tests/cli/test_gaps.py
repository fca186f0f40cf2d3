"""The command line has what the library has: every setting of a function is an option of its command, with its default."""

from __future__ import annotations

import argparse
import inspect
import os
from dataclasses import fields

import pytest

from sparsity_core import generate, load, run
from sparsity_core.cli.parser import make_parser
from sparsity_core.evaluate import perplexity
from sparsity_core.methods.decode.double_sparsity.calibration import calibrate
from sparsity_core.methods.eviction.a2sf.fitting import fit_factors
from sparsity_core.methods.gate.dcp.records import Training
from sparsity_core.methods.gate.dcp.training import train_gate
from sparsity_core.methods.weights.prunenet.training import train_policy
from sparsity_core.weights import CompressedModel, recover
from tests import tiny
from tests.cli.test_cli import A2SF, as_json, call, tiny_folder, with_tiny

__all__ = ["tiny_folder", "with_tiny"]  # fixtures

# What a command itself gives: its model, its progress bar, and files that it reads or writes.
GIVEN = {"model", "compressed", "training", "progress", "prompt", "text", "checkpoint", "on_step", "self"}
LOADED = {"device", "dtype"}
COMMANDS = {
    "run": run,
    "generate": generate,
    "eval": perplexity,
    "compress": CompressedModel.report,
    "calibrate": calibrate,
    "train prunenet": train_policy,
    "train dcp": train_gate,
    "train a2sf": fit_factors,
}


def options_of(command: str) -> dict[str, argparse.Action]:
    parser: argparse.ArgumentParser = make_parser()
    for word in command.split():
        below = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
        parser = below.choices[word]
    return {action.dest: action for action in parser._actions if action.dest != "help"}


def settings_of(function) -> dict[str, object]:
    """The names and defaults of what a caller may choose."""
    found = {p.name: p.default for p in inspect.signature(function).parameters.values() if p.name not in GIVEN}
    return {name: None if value is inspect.Parameter.empty else value for name, value in found.items()}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_setting_of_the_library_is_an_option(command):
    found, wanted = options_of(command), settings_of(COMMANDS[command])
    missing = {name for name in wanted if name not in found}
    assert not missing, f"`{command}` lacks --{', --'.join(sorted(missing)).replace('_', '-')}"
    for name, default in wanted.items():
        option = found[name]
        if name == "pipeline":  # the library's None is the text `dense`
            assert option.default == "dense"
        else:
            assert option.default == default, f"--{name} is {option.default} where the library has {default}"


def test_training_after_a_cut_is_an_option_too():
    found = options_of("compress")
    for name, default in settings_of(recover).items():
        wanted = 0 if name == "steps" else default  # 0 leaves it out
        assert found[f"recover_{name}"].default == wanted


def test_a_gate_s_training_has_an_option_a_setting():
    found = options_of("train dcp")
    assert {item.name: found[item.name].default for item in fields(Training)} == {
        item.name: item.default for item in fields(Training)
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_loads_a_model_says_how(command):
    found = options_of(command)
    assert set(settings_of(load)) == {"name", *LOADED}
    assert set(found) >= LOADED and found["model"].default == settings_of(load)["name"]


@pytest.mark.parametrize("command", [*COMMANDS, "models", "methods", "app"])
def test_every_option_says_what_it_is_for(command):
    found = options_of(command)
    assert "json" in found
    assert [name for name, action in found.items() if not action.help] == []


def test_a_temperature_draws_by_the_seed(capsys, with_tiny):
    given = ["generate", "--prompt", "The 12 cats", "--max-new-tokens", "12", "--no-stop-at-eos"]
    plain = as_json(capsys, *given)["text"]
    assert plain == as_json(capsys, *given, "--temperature", "0", "--seed", "3")["text"]
    hot = [as_json(capsys, *given, "--temperature", "5", "--seed", str(seed))["text"] for seed in (3, 3, 4)]
    assert hot[0] == hot[1] != hot[2]


@pytest.mark.parametrize("temperature", ["1e-300", "5e-324"])
def test_a_temperature_near_0_is_0(capsys, with_tiny, temperature):
    given = ["generate", "--prompt", "The 12 cats", "--max-new-tokens", "6", "--no-stop-at-eos"]
    assert as_json(capsys, *given, "--temperature", temperature)["text"] == as_json(capsys, *given)["text"]


@pytest.mark.parametrize("temperature", ["-1", "nan", "inf"])
def test_a_temperature_that_is_none_is_refused(capsys, with_tiny, temperature):
    status, _, err = call(capsys, "generate", "--prompt", "The cats", "--temperature", temperature)
    assert status == 2 and "temperature is 0 or more; got" in err


def test_a_prefill_is_read_densely(capsys, with_tiny):
    cut = "eviction=snapkv(budget=8, observation_window=2)"
    given = ["run", "--prompt", tiny.TEXT, "--pipeline", cut]
    half, late = (as_json(capsys, *given, *more) for more in ([], ["--n-prefill", str(len(tiny.TEXT) - 2)]))
    assert late["density"] > half["density"]
    status, _, err = call(capsys, *given, "--n-prefill", "-1")
    assert status == 2 and "n_prefill is 0 or more tokens; got -1" in err


def test_the_dense_pass_and_snapshots_can_be_left_out(capsys, with_tiny, tmp_path):
    from sparsity_core import Trace

    given = ["run", "--prompt", tiny.TEXT, "--pipeline", A2SF, "--out", str(tmp_path / "out")]
    found = as_json(capsys, *given, "--no-against-dense", "--snapshots", "3")
    assert found["regret"] is None and found["dense_perplexity"] is None
    assert len(Trace.load(found["trace"]).snapshot_steps) == 3


def test_a_cut_model_is_trained_back(capsys, tmp_path, tiny_folder):
    text = tmp_path / "text.txt"
    text.write_text("The harbour office opens at six, when the fog still hides the far pier. " * 20)
    found = as_json(
        capsys, "compress", "--weights", "row_norm(ratio=0.25)", "--recover-steps", "2", "--recover-length", "16",
        "--recover-file", str(text), "--file", str(text), "--block", "32", "--blocks", "1", "--model", str(tiny_folder),
        "--device", "cpu", "--out", str(tmp_path / "small"),
    )  # fmt: skip
    assert len(found["recovery"]["losses"]) == 2 and found["recovery"]["text"] == "given"
    assert "31 tokens predicted in 1 blocks of 32" in found["perplexity_convention"]


EMPTY = [["run", "--file", ""], ["run", "--prompt", "x", "--out", ""], ["calibrate", "--out", ""]]
EMPTY += [["compress", "--weights", "row_norm", "--out", " "], ["train", "dcp", "--start", "", "--out", "x"]]


@pytest.mark.parametrize("arguments", EMPTY, ids=" ".join)
def test_an_empty_path_is_refused(capsys, arguments):
    status, _, err = call(capsys, *arguments)
    assert status == 2 and "the name is empty: give a path" in err


def test_a_folder_that_holds_something_is_refused_before_the_work(capsys, tmp_path):
    (tmp_path / "kept").write_text("")
    given = ["--weights", "row_norm(ratio=0.25)", "--model", "/no/such/folder", "--out", str(tmp_path)]
    status, _, err = call(capsys, "compress", *given)
    assert status == 2 and "exists already" in err and "/no/such/folder" not in err


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_device_and_a_silent_pipe_are_refused_at_once(capsys, tmp_path):
    for device in ("/dev/full", "/dev/zero"):
        status, _, err = call(capsys, "run", "--file", device)
        assert status == 2 and f"{device} is a device" in err
    os.mkfifo(tmp_path / "pipe")
    status, _, err = call(capsys, "run", "--file", str(tmp_path / "pipe"))
    assert status == 2 and "pipe is empty" in err
