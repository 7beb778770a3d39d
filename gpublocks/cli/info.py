"""The command `info`: what this machine offers. Touches what `machine` and `gpus` look at."""

import json
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from gpublocks import __version__, executors, gpus, machine
from gpublocks.budget import format_bytes
from gpublocks.errors import DeviceError

__all__ = ["info"]


def info(*, json_wanted: bool = False) -> None:
    """Print what this machine offers, as a table or as JSON."""
    facts = _facts()
    if json_wanted:
        print(json.dumps(facts, indent=2))
        return
    rows = _rows(facts)
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name:<{width}}  {text}" for name, text in rows))


def _facts() -> dict[str, Any]:
    versions = machine.versions()
    own, caches = machine.core_cache_bytes(), machine.cache_bytes(1)
    limit, available = machine.memory_limit(), machine.memory_available()
    return {
        "gpublocks": __version__,
        "python": versions["python"],
        "platform": versions["platform"],
        "cpus": machine.cpu_count(),
        "core_cache_bytes": own,
        "shared_cache_bytes": caches - own,
        "memory_limit_bytes": limit.bytes,
        "memory_limit_reason": limit.reason,
        "memory_available_bytes": available.bytes,
        "memory_available_reason": available.reason,
        "gpus": [asdict(gpu) for gpu in gpus.gpus()],
        "gpu_status": gpus.gpu_status(),
        "executors": _executors(),
        "libraries": {
            name: version
            for name, version in versions.items()
            if name not in ("gpublocks", "python", "platform")
        },
    }


def _executors() -> list[str]:
    """Return the names of the executors that work here."""
    found = []
    for name in executors.NAMES:
        with suppress(DeviceError):
            executors.check(name)
            found.append(name)
    return found


def _rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    shared = facts["shared_cache_bytes"]
    rows = [
        ("gpublocks", facts["gpublocks"]),
        ("python", facts["python"]),
        ("platform", facts["platform"]),
        ("CPUs", f"{facts['cpus']} for this process"),
        ("cache", f"L2 {format_bytes(facts['core_cache_bytes'])} for each CPU"),
        ("", f"L3 {format_bytes(shared)}, shared" if shared else "no L3 found"),
    ]
    for title, key in (("memory limit", "memory_limit"), ("available", "memory_available")):
        size = format_bytes(facts[f"{key}_bytes"])
        rows.append((title, f"{size} ({facts[f'{key}_reason']})"))
    for gpu in facts["gpus"]:
        sizes = [gpu["free_bytes"], gpu["total_bytes"]]
        free, total = ["?" if size is None else format_bytes(size) for size in sizes]
        text = f"{gpu['name']}, {free} of {total} free, driver {gpu['driver'] or '?'}"
        rows += [(f"GPU {gpu['index']}", text), ("", f"limited by {gpu['limit']}")]
    rows.append(("GPU use", _use(facts)))
    rows.append(("executors", ", ".join(facts["executors"])))
    libraries = facts["libraries"]
    rows += [
        ("libraries" if n == 0 else "", f"{name} {version}")
        for n, (name, version) in enumerate(libraries.items())
    ]
    return rows


def _use(facts: dict[str, Any]) -> str:
    """Return which GPUs a run would use, or why none."""
    if facts["gpu_status"]:
        return f"none: {facts['gpu_status']}"
    names = ", ".join(f"cuda:{gpu['index']}" for gpu in facts["gpus"])
    return f"{names}, with CuPy {facts['libraries'].get('cupy', '?')}"
