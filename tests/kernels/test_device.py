"""What the seam of devices says of cards that this machine need not have."""

from __future__ import annotations

import warnings

import pytest
import torch
from sparselens_kernels import Card, Side, device, flash_column_score

H100 = Card("NVIDIA H100", (9, 0), 80 * 2**30, True)
CUDA = torch.device("cuda", 0)


@pytest.fixture
def machine(monkeypatch):
    """Gives the machine the described cards, and Triton or not."""

    def has(*found, triton=True):
        monkeypatch.setattr(device, "cards", lambda: list(found))
        monkeypatch.setattr(device, "has_triton", lambda: triton)
        device.takes_triton.cache_clear()

    yield has
    device.takes_triton.cache_clear()


def test_a_card_that_triton_knows_takes_the_kernels_silently(machine):
    machine(H100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert device.takes_triton(CUDA)


@pytest.mark.parametrize("capability", [(7, 5), (6, 1), (13, 0)])
def test_an_unknown_compute_capability_takes_the_reference_and_is_named(machine, capability):
    machine(Card("Tesla T4", capability, 16 * 2**30, False))
    major, minor = capability
    said = (
        rf"Tesla T4 has compute capability {major}\.{minor}, and Triton is known to compile for 8\.0 to 12\.x: PyTorch"
    )
    with pytest.warns(UserWarning, match=said):
        assert not device.takes_triton(CUDA)


def test_rocm_numbers_its_architectures_otherwise():
    assert device.no_triton(Card("AMD Instinct", (13, 0), 1, True, rocm=True), installed=True) is None


def test_a_driver_without_triton_takes_the_reference(machine):
    machine(H100, triton=False)
    with pytest.warns(UserWarning, match="Triton is not installed: PyTorch's operations run in place of the kernels"):
        assert not device.takes_triton(CUDA)


def test_each_of_two_cards_is_judged_by_itself(machine):
    machine(H100, Card("GTX 1080", (6, 1), 8 * 2**30, False))
    assert device.takes_triton(CUDA)
    with pytest.warns(UserWarning, match="GTX 1080"):
        assert not device.takes_triton(torch.device("cuda", 1))


@pytest.mark.parametrize("other", ["cpu", "mps", "xpu"])
def test_every_other_device_takes_the_reference(other):
    assert not device.takes_triton(torch.device(other))


def test_on_a_cpu_auto_is_the_reference_and_a_side_stream_is_the_callers_own_order():
    x = torch.ones(1, 1, 3, 4)
    assert flash_column_score(x, x, x).backend == "reference"
    side = Side(torch.device("cpu"))
    with side.after(side.event(), None):
        assert not side.exists
    assert side.event() is None
    side.wait(side.event())
    side.finish()
