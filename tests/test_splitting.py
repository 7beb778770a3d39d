"""Splitting one axis: closed forms compared with a loop that follows the documented text."""

import logging
import tracemalloc
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from math import ceil

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpublocks.block_processing import block_sizes
from gpublocks.errors import ArgumentTypeError, PlanError
from gpublocks.splitting import AxisSplit, aligned, as_count, even_split, split_axis

sizes = st.integers(1, 150)
many = settings(max_examples=300, deadline=None)


def reference(
    size, processes, size_max=None, size_min=None, overlap=None, optimization=True, fix="all"
):
    """Return block and valid ranges by the documented text, one step after the other."""
    size_max = size if size_max is None or size_max > size else size_max
    overlap = 0 if overlap is None else min(overlap, size - 1)
    fixed = size_min == "fixed"
    if size_min is None:
        size_min = min(size_max, overlap + 1)
    size_min = size_max if fixed else min(size_min, size)
    if size_min > size_max or overlap >= size_max or overlap >= size_min:
        raise PlanError("contradiction")
    count = max(1, ceil(Fraction(size - size_max, size_max - overlap) + 1))
    if count == 1:
        return [(0, size)], [(0, size)]
    mean = Fraction(size + (count - 1) * overlap, count)
    # The documentation lifts a mean width to size_min; blocks that long reach beyond the axis, so
    # that the last one is pulled back, as with 'fixed'.
    pulled = fixed or mean < size_min
    width = Fraction(size_max if fixed else max(mean, size_min))
    if optimization and not fixed and count % processes:
        rest = count % processes
        if fix in ("all", None):
            fix = "increase" if rest < processes / 2 else "decrease"
        # No more blocks than leave every valid range one voxel, though not documented.
        new = min(count - rest + processes, size - overlap) if fix == "decrease" else count - rest
        if new > 0 and new != count:
            count, pulled = new, False
            width = Fraction(size + (count - 1) * overlap, count)
    return lay_out(size, count, overlap, width, pulled)


def lay_out(size, count, overlap, width, pulled):
    blocks, fractions, lower = [], Fraction(0), 0
    for k in range(count):
        length = int(width)
        fractions += width - length
        if fractions >= 1:
            fractions -= 1
            length += 1
        upper = lower + length
        if k == count - 1:
            lower, upper = (size - length if pulled else lower), size
        blocks.append((lower, upper))
        lower = upper - overlap
    # Halves to even, documented, would empty every other valid range where blocks advance by a
    # single voxel: there they are rounded down.
    down = int(width) - overlap == 1
    middles = [Fraction(a + b, 2) for (_, a), (b, _) in pairwise(blocks)]
    borders = [0, *(int(middle) if down else round(middle) for middle in middles), size]
    return blocks, list(pairwise(borders))


@st.composite
def parameters(draw, longest=120):
    """Draw arguments of `split_axis` that do not contradict each other."""
    size = draw(st.integers(1, longest))
    size_max = draw(st.none() | st.integers(1, size + 5))
    largest = min(size, size_max or size)
    overlap = draw(st.none() | st.integers(0, largest - 1))
    if size_max is None:
        overlap = draw(st.none() | st.integers(0, size + 5))
    shared = min(overlap or 0, size - 1)
    size_min = draw(st.none() | st.just("fixed") | st.integers(shared + 1, largest))
    return {
        "size": size,
        "size_max": size_max,
        "size_min": size_min,
        "overlap": overlap,
        "processes": draw(st.integers(1, 20)),
        "optimization": draw(st.booleans()),
        "optimization_fix": draw(st.sampled_from(["all", "increase", "decrease", None])),
    }


def ranges(split):
    blocks = [split.block(k) for k in range(len(split))]
    return blocks, [split.valid(k) for k in range(len(split))]


@many
@given(parameters())
@example({"size": 4, "size_max": 2, "size_min": None, "overlap": 1, "processes": 1})
@example({"size": 20, "size_max": 10, "size_min": 6, "overlap": 3, "processes": 2})
def test_splits_are_as_documented(arguments):
    split = split_axis(**arguments)
    documented = dict(arguments)
    documented["fix"] = documented.pop("optimization_fix", "all")
    blocks, valid = ranges(split)
    assert (blocks, valid) == reference(**documented)
    assert all(type(number) is int for pair in [*blocks, *valid] for number in pair)
    check_invariants(split, blocks, valid)
    check_lengths(split, blocks)
    plain = split_axis(**{**arguments, "optimization": False})
    check_bounds(plain, arguments["size_max"], arguments["size_min"])
    if arguments["size_min"] != "fixed":
        check_optimised(arguments, plain)


def check_invariants(split, blocks, valid):
    size, overlap = split.size, split.overlap
    assert valid[0][0] == 0
    assert valid[-1][1] == size
    for (lower, upper), (lo, hi) in zip(blocks, valid, strict=True):
        assert 0 <= lower <= lo < hi <= upper <= size
        assert lo == 0 or lo - lower >= overlap // 2
        assert hi == size or upper - hi >= overlap // 2
    for before, after in pairwise(valid):
        assert before[1] == after[0]
    for before, after in pairwise(blocks):
        assert before[0] < after[0]
        assert before[1] < after[1]
        assert before[1] - after[0] >= overlap


def check_lengths(split, blocks):
    lengths = [upper - lower for lower, upper in blocks]
    assert split.largest == max(lengths)
    assert split.read == sum(lengths)
    if not split.pulled:
        assert {before[1] - after[0] for before, after in pairwise(blocks)} <= {split.overlap}
        assert max(lengths) - min(lengths) <= 1


def check_bounds(split, size_max, size_min):
    lengths = [upper - lower for lower, upper in ranges(split)[0]]
    largest = min(split.size, size_max or split.size)
    assert max(lengths) <= largest
    if size_min == "fixed":
        assert set(lengths) == {largest}
    elif size_min:
        assert min(lengths) >= min(size_min, split.size)


def check_optimised(arguments, plain):
    split = split_axis(**{**arguments, "optimization": True})
    if arguments.get("optimization_fix") == "increase":
        assert len(split) <= len(plain)
    if arguments.get("optimization_fix") == "decrease":
        assert len(split) >= len(plain)
    processes = arguments["processes"]
    crowded = len(split) == split.size - split.overlap
    assert len(split) % processes == 0 or crowded or len(plain) < processes


@settings(max_examples=300, deadline=None)
@given(
    st.integers(10**9, 10**15),
    st.integers(100, 10**6),
    st.integers(0, 99),
    st.integers(0, 2**64),
    st.sampled_from([None, "fixed"]),
)
def test_invariants_on_axes_of_any_length(size, size_max, overlap, anywhere, size_min):
    split = split_axis(size, size_max=size_max, overlap=overlap, size_min=size_min, processes=7)
    middle = anywhere % len(split)
    for start in (0, max(0, min(middle, len(split) - 4)), len(split) - 4):
        numbers = range(start, start + 4)
        for k in numbers:
            (lower, upper), (lo, hi) = split.block(k), split.valid(k)
            assert 0 <= lower <= lo < hi <= upper <= size
            assert upper - lower in (split.largest, split.largest - 1)
            assert lo == split.border(k)
            assert hi == split.border(k + 1)
    assert split.border(0) == 0
    assert split.border(len(split)) == size


def test_documented_example():
    count, blocks, valid = block_sizes(200, processes=10, size_max=50, size_min=30, overlap=20)
    assert count == 10
    assert blocks[:3] == [(0, 38), (18, 56), (36, 74)]
    assert blocks[-1] == (162, 200)
    assert valid[:2] == [(0, 28), (28, 46)]


def test_documented_example_with_odd_overlap():
    found = block_sizes(20, processes=2, size_max=10, size_min=6, overlap=3)
    blocks = [(0, 7), (4, 11), (8, 15), (12, 20)]
    assert found == (4, blocks, [(0, 6), (6, 10), (10, 14), (14, 20)])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"size": 7}, [(0, 7)]),
        ({"size": 7, "size_max": 100, "overlap": 3}, [(0, 7)]),
        ({"size": 7, "overlap": 100}, [(0, 7)]),
        ({"size": 1, "size_max": 1}, [(0, 1)]),
        ({"size": 10, "size_max": 4, "size_min": "fixed"}, [(0, 4), (4, 8), (6, 10)]),
        (
            {"size": 10, "size_max": 5, "size_min": "fixed", "overlap": 2},
            [(0, 5), (3, 8), (5, 10)],
        ),
        ({"size": 10, "size_max": 9, "size_min": 8}, [(0, 8), (2, 10)]),
        ({"size": 5, "size_max": 2, "overlap": 1}, [(0, 2), (1, 3), (2, 4), (3, 5)]),
    ],
)
def test_known_blocks(arguments, expected):
    assert ranges(split_axis(**arguments))[0] == expected


def test_serial_is_one_worker_and_none_the_cpus(monkeypatch):
    monkeypatch.setattr("gpublocks.machine.cpu_count", lambda: 6)
    assert block_sizes(100, "serial", size_max=30)[0] == 4
    assert block_sizes(100, None, size_max=30)[0] == 6


def test_verbose_prints_one_line(capsys):
    block_sizes(10, 1, size_max=5, verbose=True)
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert "2 blocks" in out


def test_exceeding_size_max_is_logged(caplog):
    with caplog.at_level(logging.WARNING):
        split = split_axis(
            100, size_max=20, processes=4, optimization_fix="increase", label=" of z"
        )
    assert split.largest == 25
    assert [record.getMessage() for record in caplog.records] == [
        "optimising for 4 processes makes blocks of 25 voxels of z, above size_max 20"
    ]
    caplog.clear()
    split_axis(100, size_max=20, processes=4, optimization_fix="decrease")
    assert not caplog.records


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ({"size_min": 6, "size_max": 5}, ["size_min 6", "size_max 5"]),
        ({"overlap": 7, "size_max": 5}, ["overlap 7", "size_max 5", "at most 4"]),
        ({"overlap": 3, "size_max": 5, "size_min": 3}, ["overlap 3", "size_min 3"]),
        ({"size_max": 0}, ["size_max", "0", "at least 1"]),
        ({"size_max": -5}, ["size_max", "-5"]),
        ({"size_min": 0}, ["size_min", "0"]),
        ({"overlap": -1}, ["overlap", "-1", "use 0 for none"]),
        ({"size": 0}, ["size", "0"]),
        ({"processes": 0}, ["processes", "0"]),
        ({"size_min": "fix"}, ["size_min", "'fix'", "'fixed'"]),
        ({"optimization": "fast"}, ["optimization", "'fast'"]),
        ({"optimization_fix": "some"}, ["optimization_fix", "'some'", "'increase'"]),
        ({"multiple_of": 0}, ["size_multiple_of", "0"]),
        ({"size_max": 7, "multiple_of": 8}, ["size_multiple_of 8", "at least 8"]),
        ({"size_max": 15, "size_min": 9, "multiple_of": 8}, ["size_multiple_of 8", "at least 16"]),
    ],
)
def test_contradictions_are_refused(arguments, parts):
    with pytest.raises(PlanError) as caught:
        split_axis(**{"size": 100, "label": " of axis 2", **arguments})
    assert all(part in str(caught.value) for part in parts)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["size", "size_max", "size_min", "overlap", "processes"])
@pytest.mark.parametrize(
    "value", [2.5, 2.0, float("nan"), float("inf"), True, np.True_, b"64", np.array([1, 2]), 1j]
)
def test_what_is_no_whole_number_is_refused(name, value):
    with pytest.raises(ArgumentTypeError, match=f"{name} is .*give a whole number"):
        split_axis(**{"size": 100, name: value})


@pytest.mark.parametrize("kind", [np.int8, np.uint64, np.int32, np.array])
def test_numpy_integers_are_numbers(kind):
    split = split_axis(kind(100), size_max=kind(30), overlap=kind(4), processes=kind(2))
    assert split == split_axis(100, size_max=30, overlap=4, processes=2)
    assert type(split.size) is int
    assert type(as_count("n", kind(3), 0)) is int


@many
@given(parameters(), st.integers(1, 40))
def test_size_multiple_of(arguments, multiple):
    fixed = arguments["size_min"] == "fixed"
    try:
        split = split_axis(**arguments, multiple_of=multiple)
    except PlanError as error:
        advised = int(str(error).rpartition(" ")[2])
        assert advised % multiple == 0
        split = split_axis(**{**arguments, "size_max": advised}, multiple_of=multiple)
    else:
        assert split.largest <= (arguments["size_max"] or split.size) or multiple == 1
    blocks, valid = ranges(split)
    check_invariants(split, blocks, valid)
    assert split.largest == max(upper - lower for lower, upper in blocks)
    assert split.read == sum(upper - lower for lower, upper in blocks)
    if multiple == 1:
        assert split == split_axis(**arguments)
        return
    whole = blocks if fixed and len(blocks) > 1 else blocks[:-1]
    assert all((upper - lower) % multiple == 0 for lower, upper in whole)
    assert len({upper - lower for lower, upper in whole}) <= 1
    if not fixed and arguments["size_min"]:
        assert all(upper - lower >= arguments["size_min"] for lower, upper in whole)


@st.composite
def many_blocks(draw):
    """Draw splits of ten blocks or more, some of them shorter than a unit, some longer."""
    count, step = draw(st.integers(10, 40)), draw(st.integers(1, 12))
    overlap, rest = draw(st.integers(0, 12)), draw(st.integers(0, count - 1))
    size = count * step + overlap + rest
    if draw(st.booleans()):
        return even_split(size, count, overlap)
    return split_axis(size, size_max=step + overlap, size_min="fixed", overlap=overlap)


@many
@given(parameters().map(lambda p: split_axis(**p)) | many_blocks(), st.integers(1, 12), sizes)
def test_alignment(split, unit, size_max):
    if unit == 1 or len(split) == 1:
        assert aligned(split, unit, None) == split
        return
    snapped = replace(split, unit=unit)
    borders = [snapped.border(k) for k in range(len(split) + 1)]
    for k, border in enumerate(borders[:-1]):
        assert border % unit == 0
        assert 2 * abs(border - split.border(k)) <= unit + 1
    assert borders[0] == 0
    assert borders[-1] == split.size
    if not all(before < after for before, after in pairwise(borders)):
        with pytest.raises(PlanError, match=f"too small.* {unit} voxels at a time"):
            aligned(split, unit, None)
        return
    assert aligned(split, unit, None) == snapped
    check_aligned_blocks(split, snapped)
    if snapped.largest <= size_max:
        assert aligned(split, unit, size_max) == snapped
        return
    with pytest.raises(PlanError, match=f"axis 1 .* {unit} .*{snapped.largest}.*{size_max}"):
        aligned(split, unit, size_max, " of axis 1")


def check_aligned_blocks(split, snapped):
    size, half = split.size, split.overlap // 2
    blocks, valid = ranges(snapped)
    for (lower, upper), (lo, hi) in zip(blocks, valid, strict=True):
        assert 0 <= lower <= lo < hi <= upper <= size
        assert lo - lower >= min(half, lo)
        assert upper - hi >= min(half, size - hi)
    for before, after in pairwise(valid):
        assert before[1] == after[0]
    for before, after in pairwise(blocks):
        assert before[1] - after[0] >= split.overlap or after[0] == 0 or before[1] == size
    lengths = [upper - lower for lower, upper in blocks]
    assert snapped.largest == max(lengths)
    assert snapped.read == sum(lengths)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 50), st.integers(1, 64), st.sampled_from([None, "fixed"]))
def test_any_number_of_blocks_is_split_at_once(overlap, unit, size_min):
    tracemalloc.start()
    try:
        split = aligned(
            split_axis(10**15, size_max=1000, overlap=overlap, size_min=size_min), unit, None
        )
        assert len(split) >= 10**12
        assert 1000 - unit <= split.largest <= 1000 + 2 * unit
        longer = split.read - 10**15 - (len(split) - 1) * split.overlap
        assert 0 <= longer <= 1000
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_an_axis_split_is_a_value():
    assert even_split(10, 3, 2) == AxisSplit(10, 3, 2, 4, 2)
    assert hash(even_split(10, 3, 2)) == hash(even_split(10, 3, 2))
