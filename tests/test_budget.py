"""Bytes and text for them, and what a function takes."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpublocks.budget import Need, format_bytes, parse_bytes
from gpublocks.errors import ArgumentTypeError, PlanError


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("8GB", 8 * 10**9),
        ("8 GB", 8 * 10**9),
        ("8gb", 8 * 10**9),
        (" 1.5 TB ", 1_500_000_000_000),
        ("2GiB", 2 << 30),
        ("512 MiB", 512 << 20),
        ("3kB", 3000),
        ("3 KiB", 3 << 10),
        ("7", 7),
        ("7B", 7),
        ("7.", 7),
        ("1TiB", 1 << 40),
        (12, 12),
        (12.9, 12),
        (np.float64(1e9), 10**9),
    ],
)
def test_texts_and_numbers_are_bytes(text, count):
    assert parse_bytes(text) == count
    assert type(parse_bytes(text)) is int


@pytest.mark.parametrize("count", [np.int64(5), np.uint8(5), np.int32(5)])
def test_numpy_integers_are_bytes(count):
    assert parse_bytes(count) == 5
    assert type(parse_bytes(count)) is int


@pytest.mark.parametrize(
    "value", ["", "GB", "8 XB", "8 G", "-8GB", "1e9", "8GB8", "0", "0.2", 0, -1, "inf", "9e9GB"]
)
def test_what_is_no_amount_is_refused(value):
    with pytest.raises(PlanError, match=re.escape(repr(value))):
        parse_bytes(value)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e300, 2**63, "99999999TB"])
def test_absurd_amounts_are_refused(value):
    with pytest.raises(PlanError, match="at least one byte and below 8 EiB"):
        parse_bytes(value)


@pytest.mark.parametrize("value", [True, None, b"8GB", [8], 1j, np.True_])
def test_what_is_neither_number_nor_text_is_refused(value):
    with pytest.raises(ArgumentTypeError, match="give bytes or a text such as '8GB'"):
        parse_bytes(value)


@given(st.integers(1, 10**16))
def test_a_number_of_bytes_can_be_read_back(count):
    text = format_bytes(count)
    assert re.fullmatch(r"\d[\d.e+]* (B|kB|MB|GB|TB)", text)
    assert parse_bytes(text) == pytest.approx(count, rel=0.01)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1536, "1.54 kB"),
        (999_600, "1 MB"),
        (8 * 10**9, "8 GB"),
        (2.5e12, "2.5 TB"),
        (1.5e15, "1500 TB"),
    ],
)
def test_bytes_as_text(count, text):
    assert format_bytes(count) == text


@given(st.integers(0, 10**12), st.floats(0, 1000), st.integers(0, 10**9))
def test_a_need_grows_with_the_block(voxels, per_voxel, fixed):
    need = Need(per_voxel, fixed)
    assert need.of(0) == fixed
    assert need.of(voxels) == pytest.approx(per_voxel * voxels + fixed, abs=1, rel=1e-9)
    assert type(need.of(voxels)) is int


@pytest.mark.parametrize(("itemsize", "per_voxel"), [(1, 32), (4, 32), (8, 32), (16, 64)])
def test_the_default_need_is_four_arrays(itemsize, per_voxel):
    assert Need.default(itemsize) == Need(per_voxel, 0, "default")
