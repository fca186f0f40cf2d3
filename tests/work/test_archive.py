"""A sealed file comes back as it was, or is refused; and a small file never claims much memory."""

from __future__ import annotations

import io
import json
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sparsity_core.work.archive import opened, sealed

ARRAYS = st.dictionaries(
    st.text("abcdefg_", min_size=1, max_size=8).filter(lambda name: name != "seal"),
    hnp.arrays(
        st.sampled_from(["f4", "f2", "i4", "u1", "?", "f8"]), hnp.array_shapes(min_dims=0, max_dims=3, max_side=5)
    ),
    max_size=4,
)


@settings(max_examples=60)
@given(ARRAYS, st.text(max_size=20))
def test_what_is_sealed_comes_back_as_it_was(arrays, about):
    back = opened(sealed(arrays, about), about)
    assert set(back) == set(arrays)
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype and back[name].shape == array.shape
        assert back[name].tobytes() == array.tobytes()


@settings(max_examples=60)
@given(ARRAYS.filter(bool), st.data())
def test_every_change_of_an_array_is_found(arrays, data):
    """Changed within an intact archive, which zip's own checks let pass."""
    with np.load(io.BytesIO(sealed(arrays, "x"))) as stored:
        members = {name: stored[name] for name in stored.files}
    name = data.draw(st.sampled_from(sorted(arrays)))
    changed = data.draw(
        hnp.arrays(arrays[name].dtype, arrays[name].shape).filter(lambda a: a.tobytes() != members[name].tobytes())
        if arrays[name].size
        else st.just(np.zeros(1))
    )
    for tampered in (
        {**members, name: changed},
        {n: a for n, a in members.items() if n != name},
        {**members, "another": changed},
        {n: a for n, a in members.items() if n != "seal"},
        {**members, "seal": np.frombuffer(json.dumps({"about": "x"}).encode(), np.uint8)},
    ):
        buffer = io.BytesIO()
        np.savez(buffer, **tampered)
        with pytest.raises(ValueError, match="the file"):
            opened(buffer.getvalue())


@settings(max_examples=100)
@given(ARRAYS, st.data())
def test_every_cut_and_every_flipped_bit_is_refused_or_harmless(arrays, data):
    whole = sealed(arrays, "x")
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(ValueError, match="the file is damaged"):
        opened(whole[:cut])
    flipped = bytearray(whole)
    flipped[cut] ^= 1 << data.draw(st.integers(0, 7))
    try:
        back = opened(bytes(flipped), "x")
    except ValueError:
        return
    assert {name: a.tobytes() for name, a in back.items()} == {name: a.tobytes() for name, a in arrays.items()}


def test_a_file_of_something_else_is_refused():
    data = sealed({"a": np.arange(3)}, "this \ud83d\ude00")
    opened(data, "this \ud83d\ude00")
    with pytest.raises(ValueError, match="is of something else"):
        opened(data, "that")


def test_a_small_file_that_would_unpack_to_much_is_refused_before_it_does():
    buffer = io.BytesIO()
    np.savez_compressed(buffer, a=np.zeros(300 * 2**20, np.uint8))
    assert len(buffer.getvalue()) < 400_000
    tracemalloc.start()
    with pytest.raises(ValueError, match="damaged"):
        opened(buffer.getvalue())
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_a_member_that_lies_about_its_size_unpacks_to_no_more_than_it_says():
    buffer = io.BytesIO()
    np.savez_compressed(buffer, a=np.zeros(300 * 2**20, np.uint8))
    data = buffer.getvalue()
    with zipfile.ZipFile(io.BytesIO(data)) as packed:
        true = packed.infolist()[0].file_size.to_bytes(4, "little")
    lying = data.replace(true, (4096).to_bytes(4, "little"))
    assert lying != data
    tracemalloc.start()
    with pytest.raises(ValueError, match="damaged"):
        opened(lying)
    assert tracemalloc.get_traced_memory()[1] < 400 * 2**20  # numpy sets aside what the header asks for, untouched
    tracemalloc.stop()


def test_arrays_that_pack_tightly_are_stored_so_that_they_open():
    """The dense run of a large model over a long text is mostly one number."""
    arrays = {"a": np.zeros(100 * 2**20, np.uint8)}
    data = sealed(arrays)
    assert np.array_equal(opened(data)["a"], arrays["a"])
