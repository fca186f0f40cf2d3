"""What a user names is read within bounds, and what is written appears whole or not at all."""

from __future__ import annotations

import os
import resource
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sparsity_core.work.files import MOST_BYTES, UNFINISHED, folder_whole, new_folder, read_file, read_regular

DEVICES = ["/dev/full", "/dev/zero", "/dev/random"]


@pytest.mark.parametrize("device", DEVICES)
def test_a_device_is_not_read(device):
    with pytest.raises(ValueError, match=f"{device} is a device: give a file of text, or a pipe"):
        read_file(Path(device))
    with pytest.raises(OSError, match="no regular file"):
        read_regular(Path(device))


def test_a_pipe_is_read_as_far_as_it_goes(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ValueError, match="pipe is empty"):  # nobody writes to it: it is not waited for
        read_file(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)  # so that the writer may open it
    writer = os.open(pipe, os.O_WRONLY)
    os.write(writer, b"some text")
    threading.Thread(target=lambda: (time.sleep(0.3), os.write(writer, b" and more"), os.close(writer))).start()
    assert read_file(pipe) == "some text and more"
    os.close(reader)


def test_a_pipe_that_never_gives_anything_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr("sparsity_core.work.files._PATIENCE", 0.2)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    both = os.open(pipe, os.O_RDWR)
    with pytest.raises(ValueError, match="pipe has sent nothing for"):
        read_file(pipe)
    os.close(both)


def test_an_endless_pipe_is_left_after_five_megabytes(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = subprocess.Popen(["sh", "-c", f"yes > {pipe}"])
    time.sleep(0.3)
    with pytest.raises(ValueError, match="pipe has 5 MB: give a text of at most 5 MB"):
        read_file(pipe)
    writer.wait(timeout=20)


def test_a_large_file_is_not_read(tmp_path):
    sparse = tmp_path / "large.txt"
    with sparse.open("wb") as file:
        file.truncate(40 * 2**30)
    with pytest.raises(ValueError, match=r"large.txt has 40,960 MB: give a text of at most 5 MB"):
        read_file(sparse)
    (tmp_path / "whole.txt").write_bytes(b"a" * MOST_BYTES)
    assert len(read_file(tmp_path / "whole.txt")) == MOST_BYTES


def test_a_missing_file_and_a_folder_are_sentences(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read .*none \(No such file or directory\)"):
        read_file(tmp_path / "none")
    with pytest.raises(ValueError, match="Is a directory"):
        read_file(tmp_path)


@pytest.mark.parametrize("mode", [0o700, 0o750, 0o2775])
def test_an_empty_folder_keeps_its_mode(tmp_path, mode):
    target = tmp_path / "private"
    target.mkdir()
    target.chmod(mode)
    with folder_whole(target) as building:
        (building / "a").write_text("a")
    assert stat.S_IMODE(target.stat().st_mode) == mode
    assert [p.name for p in tmp_path.iterdir()] == ["private"] and (target / "a").exists()


def test_a_new_folder_gets_the_mode_of_any_other(tmp_path):
    (tmp_path / "other").mkdir()
    with folder_whole(tmp_path / "deep" / "new"):
        pass
    assert (tmp_path / "deep" / "new").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_folder_that_fails_leaves_nothing(tmp_path):
    def stopped() -> None:
        with folder_whole(tmp_path / "new") as building:
            (building / "a").write_text("a")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_refused(tmp_path):
    (tmp_path / "a").write_text("a")
    for taken in (tmp_path, tmp_path / "a"):
        with pytest.raises(ValueError, match="exists already: choose a folder that is new or empty"):
            new_folder(taken)


def test_what_a_killed_writer_left_goes_with_the_next_folder(tmp_path):
    left = tmp_path / f"{UNFINISHED}abc" / "out"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    for path in (left / "model.safetensors", left, left.parent):
        os.utime(path, (1e9, 1e9))
    with folder_whole(tmp_path / "out"):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


FULL = """
import resource, sys
from pathlib import Path
import numpy as np
from sparsity_core.work.files import folder_whole, write_whole
from sparsity_core.work.kept_prompts import keep_prompt, kept_prompt
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path = Path(sys.argv[1])
try:
    write_whole(path / "whole", bytes(8192))
except OSError as error:
    print("refused", error.errno)
name = keep_prompt("word " * 4000)
print(kept_prompt(name))
try:
    with folder_whole(path / "folder") as building:
        (building / "model").write_bytes(bytes(8192))
except OSError as error:
    print("refused", error.errno)
"""


def test_a_disk_that_takes_no_more_leaves_no_part(tmp_path):
    """The kernel itself refuses: a limit on the size of files stands for a full disk."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    environment = {**os.environ, "SPARSELENS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.split("\n") == ["refused 27", "None", "refused 27", ""]
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
    assert not (tmp_path / "folder").exists()
