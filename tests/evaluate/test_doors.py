"""A sweep's cells as tasks of a Ray cluster, and as jobs that submitit starts."""

from __future__ import annotations

import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest

from sparsity_core.evaluate.sweeping import read_sweep, sweep
from tests.evaluate.test_sweep import ROOT, files, place

__all__ = ["place"]  # a fixture


def package(name: str):
    try:
        return __import__(name)
    except ImportError:
        warnings.warn(f"sweeps by {name} are not tested: it is not installed", stacklevel=2)
        pytest.skip(f"{name} is not installed")


@pytest.mark.slow
def test_a_cluster_that_loses_a_node_in_mid_sweep_loses_no_cell(place, monkeypatch):
    """Two nodes of a real local cluster; the one that has more work is killed once a few cells are in."""
    package("ray")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'kernels'}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    doomed = cluster.add_node(num_cpus=1)
    ended: list[float] = []

    def progress(share: float, doing: str) -> None:
        if not ended and len(files(place / "out")) >= 3:
            assert ray.cluster_resources()["CPU"] == 2
            cluster.remove_node(doomed, allow_graceful=False)
            ended.append(share)

    try:
        done = sweep("grid.yaml", "out", ray=cluster.address, progress=progress)
        assert ended and ended[0] < 1
        assert (done.computed, done.found, done.failed) == (16, 0, 0)
        assert len(files(place / "out")) == 16 and len(read_sweep("out")["key"].unique()) == 16
        again = sweep("grid.yaml", "out", ray=cluster.address)
        assert (again.computed, again.found) == (0, 16)
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_a_sentence(place):
    package("ray")
    script = "from sparsity_core.evaluate import sweep; sweep('grid.yaml', 'out', ray='127.0.0.1:1')"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"},
        capture_output=True,
        text=True,
        timeout=120,  # s: what it must not do is wait for good
    )
    assert "ValueError: no Ray cluster answers at 127.0.0.1:1" in done.stderr


def test_a_node_without_memory_is_a_sentence_and_an_option_that_ray_has_not_is_too(place):
    ray = package("ray")
    from sparsity_core.evaluate.doors import _lost, _task

    assert _lost(ray.exceptions.OutOfMemoryError("…")).startswith("The node ran out of memory: choose a smaller model")
    cluster = SimpleNamespace(cluster_resources=lambda: {"CPU": 2.0}, remote=ray.remote)
    with pytest.raises(ValueError, match="a cell asks for num_gpus=1, and all of the cluster has 0"):
        _task(cluster, {"num_gpus": 1})
    with pytest.raises(ValueError, match="Ray takes no such options"):
        _task(cluster, {"num_gpu": 1})


@pytest.mark.slow
def test_jobs_of_submitit_are_shards_and_a_job_that_dies_leaves_its_cells_to_the_next(place, monkeypatch):
    package("submitit")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'kernels'}")
    done = sweep("grid.yaml", "out", slurm=2, slurm_options={"cluster": "local", "timeout_min": 10})
    assert (done.computed, done.found, done.failed, done.missing) == (16, 0, 0, 0)
    assert len(list((place / "out" / ".submitit").iterdir())) > 2


def test_without_slurm_there_is_a_sentence(place):
    package("submitit")
    with pytest.raises(ValueError, match="no Slurm jobs can be submitted"):
        sweep("grid.yaml", "out", slurm=2)
    with pytest.raises(ValueError, match="no Slurm jobs can be submitted"):
        sweep("grid.yaml", "out", slurm=2, slurm_options={"cluster": "local", "no_such_parameter": 1})
