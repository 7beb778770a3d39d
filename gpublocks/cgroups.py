"""Control groups: the limits on CPUs and memory that bound this process. Reads /proc and /sys."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

__all__ = [
    "ControlGroup",
    "control_groups",
    "cpu_quotas",
    "memory_limits",
    "oom_kills",
    "read_text",
]

_ROOT = Path("/")


@dataclass(frozen=True, slots=True)
class ControlGroup:
    """A cgroup: its name in its hierarchy, for messages, and the folder of its files."""

    name: str
    folder: Path


@dataclass(frozen=True, slots=True)
class _Mount:
    """A mounted cgroup hierarchy: the group that its mount point shows, and its controllers."""

    top: PurePosixPath
    point: Path
    controllers: tuple[str, ...]


def control_groups(controller: str, root: Path = _ROOT) -> list[list[ControlGroup]]:
    """Return the cgroups that bound this process, its own first, then all visible ones above it.

    Parameters
    ----------
    controller : str
        ``'memory'`` or ``'cpu'``.
    root : Path
        Folder that holds ``proc`` and ``sys``.

    Returns
    -------
    list of list of ControlGroup
        One non-empty list for each hierarchy that may carry the controller: version 1, version 2,
        or both on a hybrid system.
    """
    return _groups(controller, root, read_text(root / "proc/self/cgroup"))


@lru_cache(maxsize=32)
def _groups(controller: str, root: Path, membership: str) -> list[list[ControlGroup]]:
    """Find the groups named in a /proc/self/cgroup; kept, as the mounts take long to read."""
    mounts = list(_mounts(root))
    found = []
    for line in membership.splitlines():
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if names and controller not in names.split(","):
            continue
        key = controller if names else ""
        carrying = [mount for mount in mounts if key in mount.controllers]
        lineage = _lineage(PurePosixPath(path), carrying)
        if lineage:
            found.append(lineage)
    return found


def _mounts(root: Path) -> Iterator[_Mount]:
    """Read the mounted cgroup hierarchies (fields of mountinfo: see proc(5))."""
    for line in read_text(root / "proc/self/mountinfo").splitlines():
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.partition(" ")
        if kind not in ("cgroup", "cgroup2") or len(fields.split()) < 5:
            continue
        top, point = [
            re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
            for field in fields.split()[3:5]
        ]
        controllers = ("",) if kind == "cgroup2" else tuple(options.split()[-1].split(","))
        yield _Mount(PurePosixPath(top), root / point.lstrip("/"), controllers)


def _lineage(path: PurePosixPath, mounts: list[_Mount]) -> list[ControlGroup]:
    """Return the groups from `path` up to the top of the mount that shows it.

    In a cgroup namespace neither the path nor its top need be visible: then the groups above that
    exist are taken, at last the mount point itself, which shows the group that holds this process.
    A path that climbs out of the mount (``/../b``) is in none of its groups.
    """
    for mount in sorted(mounts, key=lambda mount: not path.is_relative_to(mount.top)):
        shown = path.is_relative_to(mount.top)
        steps = path.relative_to(mount.top) if shown else PurePosixPath()
        lineage = [
            ControlGroup(str(mount.top / step), mount.point / step)
            for step in (steps, *steps.parents)
            if ".." not in steps.parts
        ]
        existing = [group for group in lineage if group.folder.is_dir()]
        if existing:
            return existing
    return []


def cpu_quotas(root: Path = _ROOT) -> Iterator[int]:
    """Yield the CPUs that each cgroup with a quota grants, rounded up."""
    for lineage in control_groups("cpu", root):
        for group in lineage:
            quota, period = _cpu_quota(group.folder)
            if quota > 0 and period > 0:
                yield -(-quota // period)


def memory_limits(root: Path = _ROOT) -> Iterator[tuple[str, int, int]]:
    """Yield name, limit and bytes in use of each cgroup that limits memory."""
    for lineage in control_groups("memory", root):
        for group in lineage:
            limits = [
                int(text)
                for name in ("memory.max", "memory.high", "memory.limit_in_bytes")
                if (text := read_text(group.folder / name).strip()).isdecimal()
            ]
            if not limits:
                continue
            usage = read_text(group.folder / "memory.current").strip()
            usage = usage or read_text(group.folder / "memory.usage_in_bytes").strip()
            stat = _table(group.folder / "memory.stat")
            cached = stat.get("total_inactive_file", stat.get("inactive_file", 0))
            used = max(0, int(usage) - cached) if usage.isdecimal() else 0
            yield group.name, min(limits), used


def oom_kills(root: Path = _ROOT) -> int:
    """Return how many processes of this one's cgroups the kernel has killed for memory.

    A count that grew while a worker died tells why. 0 where it is not known.
    """
    return sum(
        _table(lineage[0].folder / name).get("oom_kill", 0)
        for lineage in control_groups("memory", root)
        for name in ("memory.events", "memory.oom_control")
    )


def _cpu_quota(folder: Path) -> tuple[int, int]:
    """Return microseconds of CPU time per period, and the period; zeros for no limit."""
    fields = read_text(folder / "cpu.max").split() or [
        read_text(folder / "cpu.cfs_quota_us").strip(),
        read_text(folder / "cpu.cfs_period_us").strip(),
    ]
    if len(fields) == 2 and all(field.isdecimal() for field in fields):
        return int(fields[0]), int(fields[1])
    return 0, 0


def read_text(path: Path) -> str:
    """Return the text of a file of the kernel; nothing where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""


def _table(path: Path) -> dict[str, int]:
    """Read a file of lines 'name number'."""
    pairs = [line.split() for line in read_text(path).splitlines()]
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}
