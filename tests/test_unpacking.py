"""Compressed voxels: unpacked once, shared, gone with their last user; bombs and damage stopped."""

import bz2
import gzip
import os
import pickle
import time
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

import gpublocks as gb
from gpublocks.errors import SinkError, SourceError
from gpublocks.formats.files import compressed
from gpublocks.formats.files.paths import find_file
from gpublocks.formats.headed import unpacking
from gpublocks.geometry import Region
from tests.contracts.sources import READ, ends, reference, start

VOXELS = reference("F").tobytes("A")
WHOLE = Region.whole((5, 6, 7))
MEGABYTE = 1 << 20

PACKED = {
    "gzip": gzip.compress(b"head" + VOXELS),
    "bz2": bz2.compress(b"head" + VOXELS),
    "zlib": zlib.compress(b"head" + VOXELS),
}


def opened(path, content=None, codec="gzip", shape=(5, 6, 7), **changes):
    """Write a file and return its source."""
    if content is not None:
        path.write_bytes(content)
    found = find_file(str(path), "a file", writable=False)
    given = {"offset": 0, "skip": 4, "dtype": np.dtype("f4"), "name": "X-Source", "metadata": {}}
    given.update(changes)
    return unpacking.open_voxels(
        str(path), *found, shape=shape, codec=codec, writable=False, **given
    )


@pytest.fixture
def room(tmp_path, monkeypatch):
    """A folder for temporary files, in which nothing can be seen at any time."""
    folder = tmp_path / "room"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


def descriptors():
    """Return how many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("codec", PACKED)
def test_unpacks_when_first_read_and_forgets_at_the_end(tmp_path, room, codec):
    before = descriptors()
    source = opened(tmp_path / "x", b"..." + PACKED[codec], codec, offset=3)
    assert descriptors() == before
    assert np.array_equal(source.read(WHOLE), reference())
    view = source[1:3]
    assert list(room.iterdir()) == []
    with pytest.raises(ValueError, match="read-only"):
        view[...] = 0
    del source
    assert np.array_equal(view, reference()[1:3])
    del view
    assert descriptors() == before


def test_streams_in_parts(tmp_path, room):
    content = gzip.compress(b"head" + VOXELS[:99]) + gzip.compress(VOXELS[99:]) + bytes(100)
    assert np.array_equal(opened(tmp_path / "x", content).read(WHOLE), reference())
    content = bz2.compress(b"head" + VOXELS[:99]) + bz2.compress(VOXELS[99:])
    assert np.array_equal(opened(tmp_path / "x", content, "bz2").read(WHOLE), reference())
    for content in (PACKED["gzip"], PACKED["zlib"] + b"what follows"):
        assert np.array_equal(opened(tmp_path / "x", content, "zlib").read(WHOLE), reference())


@pytest.mark.parametrize("codec", PACKED)
def test_many_pieces(tmp_path, room, codec):
    count = 3 * MEGABYTE + 12_345
    voxels = np.random.default_rng(0).integers(0, 3, count, np.uint8)
    pack = {"gzip": lambda data: gzip.compress(data, 1), "bz2": bz2.compress, "zlib": zlib.compress}
    content = pack[codec](voxels.tobytes())
    source = opened(tmp_path / "x", content, codec, (count,), dtype=np.dtype("u1"), skip=0)
    assert np.array_equal(np.asarray(source), voxels)


def test_threads_unpack_once(tmp_path, room, monkeypatch):
    calls = []
    unpack = unpacking._unpack

    def slowly(*given):
        calls.append(given)
        time.sleep(0.05)
        return unpack(*given)

    monkeypatch.setattr(unpacking, "_unpack", slowly)
    source = opened(tmp_path / "x", PACKED["gzip"])
    with ThreadPoolExecutor(8) as pool:
        for voxels in pool.map(lambda _: source.read(WHOLE), range(50)):
            assert np.array_equal(voxels, reference())
    assert len(calls) == 1


def test_processes_share_what_one_unpacked(tmp_path, room):
    source = opened(tmp_path / "x", PACKED["gzip"], metadata={"axes": ("a", "b", "c")})
    assert pickle.loads(pickle.dumps(source)).metadata == {"axes": ("a", "b", "c")}
    (tmp_path / "sent").write_bytes(pickle.dumps((source, WHOLE)))
    (tmp_path / "x").unlink()
    ends(start(READ, tmp_path / "sent", tmp_path / "got.npy"))
    assert np.array_equal(np.load(tmp_path / "got.npy"), reference())


def test_who_comes_too_late_unpacks_again(tmp_path, room):
    source = opened(tmp_path / "x", PACKED["gzip"])
    sent = pickle.dumps(source)
    del source
    again = pickle.loads(sent)
    assert np.array_equal(again.read(WHOLE), reference())
    (tmp_path / "x").unlink()
    third = pickle.loads(pickle.dumps(again))
    assert np.array_equal(third.read(WHOLE), reference())


def test_children_do_not_wait_for_threads_that_they_have_not(tmp_path, room):
    source = opened(tmp_path / "x", PACKED["gzip"])
    with unpacking._lock:
        child = os.fork()
        if not child:
            os._exit(0 if np.array_equal(source.read(WHOLE), reference()) else 1)
        assert os.waitpid(child, 0)[1] == 0


def test_another_file_under_its_number_is_not_taken_for_it(tmp_path, room):
    source = opened(tmp_path / "x", PACKED["gzip"])
    sent = pickle.dumps(source)
    number = source._unpacked.fd
    del source
    with (tmp_path / "other").open("wb") as other:
        other.write(bytes(856))
        other.flush()
        os.dup2(other.fileno(), number)
        assert np.array_equal(pickle.loads(sent).read(WHOLE), reference())
        if number != other.fileno():
            os.close(number)


@pytest.mark.parametrize("codec", PACKED)
def test_bombs_end_at_what_the_header_promises(tmp_path, room, codec):
    bomb = {"gzip": gzip, "bz2": bz2, "zlib": zlib}[codec].compress(bytes(64 * MEGABYTE))
    source = opened(tmp_path / "x", bomb, codec)
    tracemalloc.start()
    try:
        with pytest.raises(SourceError, match="unpacks to more than the 840 bytes that its header"):
            source.read(WHOLE)
        assert tracemalloc.get_traced_memory()[1] < 8 * MEGABYTE
    finally:
        tracemalloc.stop()
    large = opened(tmp_path / "x", shape=(1 << 50,), codec=codec)
    with pytest.raises(SourceError, match=r"unpacks to .* TB, .*room has .* free; set TMPDIR"):
        large.read(Region((0,), (1,)))


@pytest.mark.parametrize("codec", PACKED)
@pytest.mark.parametrize("executor", ["serial", "processes"])
def test_damage_is_told(tmp_path, room, codec, executor):
    good = PACKED[codec]
    damaged = bytearray(good)
    damaged[len(good) // 2] ^= 0xFF
    for content in (good[:-9], bytes(damaged), b"", b"\x1f\x8b garbage"):
        source = opened(tmp_path / "x", content, codec)
        with pytest.raises(SourceError, match=r"/x (cannot be unpacked|holds \d+ of 840)"):
            gb.process(np.negative, source, halo=0, executor=executor, processes=1)


def test_wrong_checksums_are_told(tmp_path, room):
    damaged = bytearray(PACKED["gzip"])
    damaged[-6] ^= 1
    with pytest.raises(SourceError, match="CRC check failed"):
        opened(tmp_path / "x", bytes(damaged)).read(WHOLE)


@pytest.mark.parametrize("skip", [5, 10_000])
def test_too_little_is_told(tmp_path, room, skip):
    with pytest.raises(SourceError, match=r"holds \d+ of 840 data bytes .truncated"):
        opened(tmp_path / "x", PACKED["gzip"], skip=skip).read(WHOLE)


def test_no_voxels(tmp_path, room):
    source = opened(tmp_path / "x", gzip.compress(b"head"), shape=(0, 3))
    assert source.read(Region((0, 0), (0, 3))).shape == (0, 3)


def test_files_that_change(tmp_path, room):
    source = opened(tmp_path / "x", PACKED["gzip"])
    source.verify()
    os.utime(tmp_path / "x", ns=(1, 1))
    with pytest.raises(SourceError, match="changed"):
        source.verify()
    (tmp_path / "y").write_bytes(PACKED["gzip"])
    os.replace(tmp_path / "y", tmp_path / "x")
    with pytest.raises(SourceError, match="was replaced by another file"):
        source.read(WHOLE)


def test_a_full_disk(tmp_path, room, monkeypatch):
    source = opened(tmp_path / "x", PACKED["gzip"])
    usage = SimpleNamespace(free=100)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: usage)
        with pytest.raises(SourceError, match=r"unpacks to 840 B, .*room has 100 B free"):
            source.read(WHOLE)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(unpacking, "_copy", full)
    with pytest.raises(SourceError, match=r"cannot unpack .*room: No space left") as caught:
        source.read(WHOLE)
    assert caught.value.errno == 28


def test_large_files_do_not_go_to_memory(monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", "/tmp")
    assert unpacking._folder() == "/var/tmp"
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert unpacking._folder() == "/tmp"


def test_what_is_packed_is_read_back(tmp_path, monkeypatch):
    path = tmp_path / "x.gz"
    array = reference("F")
    compressed.write_gzip(str(path), array, plain=b"plain", header=b"head")
    assert path.read_bytes()[:5] == b"plain"
    assert gzip.decompress(path.read_bytes()[5:]) == b"head" + VOXELS
    write = gzip.GzipFile.write
    monkeypatch.setattr(gzip.GzipFile, "write", lambda self, data: write(self, data[:-1]))
    with pytest.raises(SinkError, match="holds 842 bytes of 844"):
        compressed.write_gzip(str(path), array, header=b"head")
