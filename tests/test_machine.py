"""What the machine room finds: in fake trees of /proc and /sys, and on this machine."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpublocks import cgroups, machine
from gpublocks.errors import ArgumentTypeError, PlanError

MB = 10**6
UNLIMITED = 9223372036854771712
V1 = "32 31 0:29 {top} {point} rw,relatime - cgroup cgroup rw,{names}\n"
V2 = "41 31 0:38 {top} {point} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
MEMORY_V1 = V1.format(top="/", point="/sys/fs/cgroup/memory", names="memory")
PLAIN_V2 = V2.format(top="/", point="/sys/fs/cgroup")


class Tree:
    """A fake root directory with the files that tell of cgroups."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("proc/self/mountinfo", "22 1 8:1 / / rw - ext4 /dev/root rw\nnonsense\n")

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def mount(self, *lines: str) -> None:
        self.write("proc/self/mountinfo", "22 1 8:1 / / rw - ext4 /dev/root rw\n" + "".join(lines))

    def group(self, folder: str, **files: object) -> None:
        (self.root / folder).mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            prefix = "cgroup" if name == "procs" else name.split("_")[0]
            rest = name.removeprefix(prefix + "_")
            self.write(f"{folder}/{prefix}.{rest}", f"{content}\n")

    def belongs(self, *lines: str) -> None:
        self.write("proc/self/cgroup", "".join(f"{line}\n" for line in lines))


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def nested_v1(tree: Tree, *, limit: int = 300 * MB, usage: int = 100 * MB) -> None:
    tree.mount(MEMORY_V1)
    tree.belongs("4:memory:/a/b", "1:cpu:/")
    base = "sys/fs/cgroup/memory"
    tree.group(base, memory_limit_in_bytes=UNLIMITED, memory_usage_in_bytes=900 * MB)
    tree.group(f"{base}/a", memory_limit_in_bytes=UNLIMITED, memory_usage_in_bytes=800 * MB)
    tree.group(f"{base}/a/b", memory_limit_in_bytes=limit, memory_usage_in_bytes=usage)


def test_nested_v1_limit_is_found_under_an_unlimited_root(tree: Tree) -> None:
    nested_v1(tree)
    assert machine.memory_limit(tree.root) == machine.Limit(300 * MB, "cgroup /a/b")
    assert machine.memory_available(tree.root) == machine.Limit(
        200 * MB, "memory free under cgroup /a/b"
    )


def test_v1_cached_file_pages_of_the_whole_group_count_as_free(tree: Tree) -> None:
    nested_v1(tree)
    tree.group(
        "sys/fs/cgroup/memory/a/b",
        memory_stat=f"cache 1\ninactive_file {5 * MB}\ntotal_inactive_file {50 * MB}",
    )
    assert machine.memory_available(tree.root).bytes == 250 * MB


def test_limit_above_the_own_group_counts(tree: Tree) -> None:
    tree.mount(PLAIN_V2)
    tree.belongs("0::/slurm/job/step")
    base = "sys/fs/cgroup/slurm"
    tree.group(base, memory_max=400 * MB, memory_current=350 * MB)
    tree.group(f"{base}/job", memory_max="max", memory_current=200 * MB)
    tree.group(f"{base}/job/step", memory_max=300 * MB, memory_current=100 * MB)
    assert machine.memory_limit(tree.root) == machine.Limit(300 * MB, "cgroup /slurm/job/step")
    assert machine.memory_available(tree.root) == machine.Limit(
        50 * MB, "memory free under cgroup /slurm"
    )


def test_v2_high_throttles_and_inactive_file_is_free(tree: Tree) -> None:
    tree.mount(PLAIN_V2)
    tree.belongs("0::/a")
    tree.group(
        "sys/fs/cgroup/a",
        memory_max=500 * MB,
        memory_high=400 * MB,
        memory_current=150 * MB,
        memory_stat=f"anon 1\ninactive_file {30 * MB}",
    )
    assert machine.memory_limit(tree.root).bytes == 400 * MB
    assert machine.memory_available(tree.root).bytes == 280 * MB


def test_max_is_no_limit(tree: Tree) -> None:
    tree.mount(PLAIN_V2)
    tree.belongs("0::/a")
    tree.group("sys/fs/cgroup/a", memory_max="max", memory_high="max", memory_current=5)
    assert machine.memory_limit(tree.root).reason == "physical memory"
    assert machine.memory_available(tree.root).reason == "available memory"


def test_hybrid_system_takes_memory_from_v1(tree: Tree) -> None:
    nested_v1(tree)
    tree.mount(V2.format(top="/", point="/sys/fs/cgroup/unified"), MEMORY_V1)
    tree.belongs("4:name=systemd:/x", "3:cpuset,memory:/a/b", "0::/")
    tree.group("sys/fs/cgroup/unified", procs="1")
    assert machine.memory_limit(tree.root).bytes == 300 * MB
    names = [[g.name for g in lineage] for lineage in cgroups.control_groups("memory", tree.root)]
    assert names == [["/a/b", "/a", "/"], ["/"]]


def test_a_full_group_leaves_nothing(tree: Tree) -> None:
    nested_v1(tree, usage=310 * MB)
    assert machine.memory_available(tree.root).bytes == 0
    assert machine.host_budget(1, root=tree.root).host_bytes == 0


def test_container_mount_shows_only_its_own_group(tree: Tree) -> None:
    point = "/sys/fs/cgroup/memory"
    tree.mount(V1.format(top="/docker/abc", point=point, names="memory"))
    tree.belongs("4:memory:/docker/abc")
    tree.group(point[1:], memory_limit_in_bytes=300 * MB, memory_usage_in_bytes=0)
    assert machine.memory_limit(tree.root) == machine.Limit(300 * MB, "cgroup /docker/abc")


@pytest.mark.parametrize(
    ("top", "path"),
    [("/", "/"), ("/", "/kubepods/pod1/abc"), ("/..", "/"), ("/docker/abc", "/elsewhere")],
    ids=["namespace", "path of the host", "mounted outside the namespace", "other top"],
)
def test_cgroup_namespace_falls_back_to_the_mount_point(tree: Tree, top: str, path: str) -> None:
    tree.mount(V2.format(top=top, point="/sys/fs/cgroup"))
    tree.belongs(f"0::{path}")
    tree.group("sys/fs/cgroup", memory_max=300 * MB, memory_current=100 * MB)
    assert machine.memory_available(tree.root).bytes == 200 * MB


def test_a_path_that_climbs_out_of_the_namespace_has_no_visible_group_below_it(tree: Tree) -> None:
    tree.mount(PLAIN_V2)
    tree.belongs("0::/../b")
    tree.group("sys/fs/cgroup", procs="1")
    tree.group("sys/fs/b", memory_max=1)
    assert machine.memory_limit(tree.root).reason == "physical memory"


def test_the_mount_that_shows_the_path_is_preferred(tree: Tree) -> None:
    other = V2.format(top="/other", point="/mnt/other")
    tree.mount(other, PLAIN_V2)
    tree.belongs("0::/a")
    tree.group("mnt/other", memory_max=1)
    tree.group("sys/fs/cgroup/a", memory_max=300 * MB)
    assert machine.memory_limit(tree.root) == machine.Limit(300 * MB, "cgroup /a")


def test_mount_points_with_spaces_and_paths_with_colons(tree: Tree) -> None:
    tree.mount(V2.format(top="/", point=r"/my\040groups"))
    tree.belongs("0::/a:b")
    tree.group("my groups/a:b", memory_max=300 * MB)
    assert machine.memory_limit(tree.root) == machine.Limit(300 * MB, "cgroup /a:b")


@pytest.mark.parametrize("cgroup", ["", "nonsense\n", "0::\n", "4:memory:/gone\n0::/gone\n"])
def test_missing_and_broken_files_mean_no_limit(tree: Tree, cgroup: str) -> None:
    tree.mount(PLAIN_V2, MEMORY_V1)
    tree.write("proc/self/cgroup", cgroup)
    assert machine.memory_limit(tree.root).reason == "physical memory"
    assert machine.memory_available(tree.root).bytes > 0
    assert machine.cpu_count(tree.root) >= 1
    assert cgroups.oom_kills(tree.root) == 0


def test_an_empty_root_means_no_limit(tmp_path: Path) -> None:
    assert cgroups.control_groups("memory", tmp_path) == []
    assert machine.memory_limit(tmp_path).reason == "physical memory"
    assert machine.core_cache_bytes(tmp_path) == machine.cache_bytes(4, tmp_path) == 1 << 20
    assert machine.rss_anon(1, tmp_path) == 0


@given(limits=st.lists(st.none() | st.integers(0, 2**40), min_size=1, max_size=5))
def test_the_smallest_limit_of_the_ancestry_wins(
    tmp_path_factory: pytest.TempPathFactory, limits: list[int | None]
) -> None:
    tree = Tree(tmp_path_factory.mktemp("root"))
    tree.mount(PLAIN_V2)
    folder = "sys/fs/cgroup"
    for n, limit in enumerate(limits):
        folder += f"/{n}"
        tree.group(folder, memory_max="max" if limit is None else limit)
    tree.belongs("0::" + folder.removeprefix("sys/fs/cgroup"))
    given_limits = [limit for limit in limits if limit is not None]
    assert machine.memory_limit(tree.root).bytes == min(
        [*given_limits, machine.memory_limit(tree.root / "none").bytes]
    )


@pytest.fixture
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


@pytest.mark.usefixtures("eight_cpus")
@pytest.mark.parametrize(
    ("outer", "inner", "count"),
    [
        ("max 100000", "max 100000", 8),
        ("250000 100000", "max 100000", 3),
        ("250000 100000", "150000 100000", 2),
        ("max 100000", "1000 100000", 1),
        ("max 100000", "6400000 100000", 8),
    ],
)
def test_v2_quota_of_the_whole_ancestry(tree: Tree, outer: str, inner: str, count: int) -> None:
    tree.mount(PLAIN_V2)
    tree.belongs("0::/a/b")
    tree.group("sys/fs/cgroup/a", cpu_max=outer)
    tree.group("sys/fs/cgroup/a/b", cpu_max=inner)
    assert machine.cpu_count(tree.root) == count


@pytest.mark.usefixtures("eight_cpus")
@pytest.mark.parametrize(("quota", "count"), [(-1, 8), (200000, 2), (200001, 3), (0, 8)])
def test_v1_quota(tree: Tree, quota: int, count: int) -> None:
    tree.mount(V1.format(top="/", point="/sys/fs/cgroup/cpu", names="cpu,cpuacct"))
    tree.belongs("5:cpu,cpuacct:/a")
    tree.group("sys/fs/cgroup/cpu/a", cpu_cfs_quota_us=quota, cpu_cfs_period_us=100000)
    assert machine.cpu_count(tree.root) == count


def test_cpu_count_without_affinity(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert machine.cpu_count(tree.root) == 5
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert machine.cpu_count(tree.root) == 1


@pytest.mark.parametrize(
    ("size", "shared", "expected"),
    [
        ("1024K", "0", 1 << 20),
        ("2M", "0-1", 1 << 20),
        ("4096K", "0-1,64-65", 1 << 20),
        ("0K", "0", 1 << 20),
        ("what", "0", 1 << 20),
        ("512K", "", 512 << 10),
    ],
)
def test_cache_is_shared_by_its_cpus(tree: Tree, size: str, shared: str, expected: int) -> None:
    base = "sys/devices/system/cpu/cpu0/cache"
    for n, (level, bytes_) in enumerate([(1, "32K"), (2, size), (3, "64M")]):
        tree.write(f"{base}/index{n}/level", f"{level}\n")
        tree.write(f"{base}/index{n}/size", f"{bytes_}\n")
        tree.write(f"{base}/index{n}/shared_cpu_list", f"{shared}\n")
    assert machine.core_cache_bytes(tree.root) == expected


@pytest.mark.parametrize(("workers", "expected"), [(1, 33), (2, 17), (8, 5), (64, 5)])
def test_workers_share_the_last_level(tree: Tree, workers: int, expected: int) -> None:
    base = "sys/devices/system/cpu/cpu0/cache"
    caches = [(1, "32K", "0"), (1, "64M", "0"), (2, "1M", "0"), (3, "32M", "0-7")]
    for n, (level, size, shared) in enumerate(caches):
        tree.write(f"{base}/index{n}/level", f"{level}\n")
        tree.write(f"{base}/index{n}/type", "Instruction\n" if n == 1 else "Unified\n")
        tree.write(f"{base}/index{n}/size", f"{size}\n")
        tree.write(f"{base}/index{n}/shared_cpu_list", f"{shared}\n")
    assert machine.cache_bytes(workers, tree.root) == expected << 20
    budget = machine.host_budget(workers, root=tree.root)
    assert (budget.core_cache_bytes, budget.cache_bytes) == (1 << 20, expected << 20)


def test_budget_is_a_share_of_what_is_available(tree: Tree) -> None:
    nested_v1(tree)
    budget = machine.host_budget(3, root=tree.root)
    assert (budget.host_bytes, budget.workers) == (120 * MB, 3)
    assert budget.reason == "60 % of memory free under cgroup /a/b (200 MB)"


def test_the_limit_of_the_user_wins(tree: Tree) -> None:
    nested_v1(tree)
    budget = machine.host_budget(1, 180 * MB, tree.root)
    assert (budget.host_bytes, budget.reason) == (180 * MB, "memory=180MB")


def test_the_limit_of_the_user_never_exceeds_what_is_available(tree: Tree) -> None:
    nested_v1(tree)
    budget = machine.host_budget(1, 8000 * MB, tree.root)
    assert budget.host_bytes == 200 * MB
    assert budget.reason == "memory free under cgroup /a/b (200 MB), below memory=8GB"


@pytest.mark.parametrize(
    ("workers", "error"), [(0, PlanError), (-1, PlanError), (1.5, ArgumentTypeError)]
)
def test_workers_must_be_a_positive_whole_number(workers: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="workers is"):
        machine.host_budget(workers)


@pytest.fixture
def data_limit() -> Iterator[int]:
    resource = pytest.importorskip("resource", reason="no resource limits on this platform")
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = 40 * 10**9
    if resource.RLIM_INFINITY not in (soft, hard):
        pytest.skip("RLIMIT_DATA is limited here")
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    yield limit
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def test_resource_limit_less_what_the_process_holds(
    tree: Tree, data_limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    psutil = pytest.importorskip("psutil")
    plenty = SimpleNamespace(total=2**50, available=2**50)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: plenty)
    tree.write("proc/self/status", "Name:\tx\nVmSize:\t 9 kB\nVmData:\t 1000000 kB\n")
    assert machine.memory_limit(tree.root) == machine.Limit(data_limit, "RLIMIT_DATA")
    assert machine.memory_available(tree.root) == machine.Limit(
        data_limit - 1024 * MB, "memory left by RLIMIT_DATA"
    )


def test_oom_kills_of_either_version(tree: Tree) -> None:
    tree.mount(PLAIN_V2, MEMORY_V1)
    tree.belongs("0::/a", "4:memory:/b")
    tree.group("sys/fs/cgroup/a", memory_events="low 0\nmax 9\noom 4\noom_kill 3\noom_group_kill 0")
    tree.group("sys/fs/cgroup/memory/b", memory_oom_control="under_oom 0\noom_kill 2")
    tree.group("sys/fs/cgroup", memory_events="oom_kill 100")
    assert cgroups.oom_kills(tree.root) == 5


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is of Linux")
def test_rss_anon_of_a_process_grows_with_what_it_touches() -> None:
    program = "import sys; b = b'x' * int(sys.argv[1]); print('up', flush=True); input()"
    found = []
    for size in (1, 50 * MB):
        with subprocess.Popen(
            [sys.executable, "-c", program, str(size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as child:
            assert child.stdout is not None
            child.stdout.readline()
            found.append(machine.rss_anon(child.pid))
    assert found[0] > 0
    assert found[1] - found[0] > 45 * MB
    assert machine.rss_anon(child.pid) == 0


def test_this_machine() -> None:
    assert 1 <= machine.cpu_count() <= (os.cpu_count() or 1)
    available, limit = machine.memory_available(), machine.memory_limit()
    assert 0 < available.bytes <= limit.bytes
    assert 0 < machine.core_cache_bytes() <= machine.cache_bytes(1)
    assert cgroups.oom_kills() >= 0
    assert machine.host_budget(2).workers == 2


def test_versions_import_nothing() -> None:
    program = (
        "import sys; from gpublocks import cgroups, machine; found = machine.versions();"
        "assert {'gpublocks', 'python', 'platform', 'numpy'} <= set(found), found;"
        "heavy = {'scipy', 'cupy', 'psutil', 'pynvml', 'matplotlib'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
