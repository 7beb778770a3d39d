"""From what parts found to ratios, verdicts and tables. Pure."""

import json
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

__all__ = ["as_text", "figures"]

_LARGE_BYTES = 4e9
_SMALL_BYTES = 1e9
"""What smaller volumes take, of time and memory, is mostly what is there for any volume."""
_MOST_OF_FLOOR = 1.15
_COPY_BOUND_GAIN = 3.0
_PEAK_MARGIN = 1.15
_GREY_LEVELS = 1
_FILE_ONLY = ("plan", "trial")
_SHORT = {
    "gpublocks / floor": "to floor",
    "predicted / measured GPU memory": "memory",
    "voxels unlike the whole array's": "wrong",
    "grey levels from SciPy's": "grey",
    "idle seconds per block": "idle s",
}
_PEERS = ("plain", "pinned", "whole", "dask", "cpu")

Results = Sequence[Mapping[str, Any]]


def figures(parts: Results) -> list[dict[str, Any]]:
    """Return for each function and volume what was promised, and whether it holds.

    Parameters
    ----------
    parts : sequence of mapping
        What `benchmarks.gpu.schedule.run_parts` returned. Parts called ``'<case>: ours'`` and
        ``'<case>: peers'`` belong together.

    Returns
    -------
    list of dict
        ``case``, ``figure``, ``value`` (None where something was not measured), ``bound`` as
        text, ``kept`` (None where there is no bound, or no value), ``detail``.
    """
    found: list[dict[str, Any]] = []
    for case, ours, peers in _cases(parts):
        found += [{"case": case, **figure} for figure in _judged(ours, peers)]
    for part in parts:
        for name, run in part["found"].items():
            if name.endswith(" held"):
                found.append({"case": f"gaussian, {name}", **_crowd(run)})
    return found


def _cases(parts: Results) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    by_name = {part["name"]: part["found"] for part in parts}
    for name in by_name:
        case, _, kind = name.rpartition(": ")
        if kind == "ours":
            yield case, by_name[name], by_name.get(f"{case}: peers", {})


def _judged(ours: Mapping[str, Any], peers: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    seconds = _seconds(ours, "ours")
    compute, movement = _seconds(peers, "floors/compute"), _movement(peers)
    floor = None if compute is None or movement is None else max(compute, movement)
    copy_bound = floor is not None and movement == floor
    large = ours.get("volume_bytes", 0) > _LARGE_BYTES
    yield _figure("ours s", seconds, None, "")
    yield _figure("compute s", compute, None, "")
    yield _figure("copies s", movement, None, "")
    yield _figure("gpublocks / floor", _ratio(seconds, floor), _MOST_OF_FLOOR if large else None,
                  f"{_s(seconds)}, compute {_s(compute)}, all copies {_s(movement)}")  # fmt: skip
    for name in _PEERS:
        value = _seconds(peers, f"peers/{name}")
        if value is not None and name == "cpu":
            value /= peers["peers"]["cpu"]["share"]
        least = None
        if name == "plain" and ours.get("volume_bytes", 0) > _SMALL_BYTES:
            least = _COPY_BOUND_GAIN if copy_bound else 1.0
        detail = _s(value)
        if name == "plain" and floor is not None:
            detail += ", copy-bound" if copy_bound else ", compute-bound"
        elif name == "cpu" and value is not None:
            detail += f", from {peers['peers']['cpu']['share']:.3f} of the volume"
        yield _figure(f"{name} / gpublocks", _ratio(value, seconds), least, detail, least=True)
    yield _peak(ours)
    checks = peers.get("checks", {})
    yield _figure("voxels unlike the whole array's", checks.get("wrong_voxels"), 0, "")
    scipy = checks.get("scipy", {})
    share = scipy.get("differing_share")
    detail = "" if share is None else f"{100 * share:.3g} % of the voxels differ"
    yield _figure("grey levels from SciPy's", scipy.get("largest_difference"), _GREY_LEVELS, detail)
    yield _idle(ours)


def _figure(
    name: str, value: float | None, bound: float | None, detail: str, *, least: bool = False
) -> dict[str, Any]:
    kept = None
    if value is not None and bound is not None:
        kept = value >= bound if least else value <= bound
    text = None if bound is None else f"{'>=' if least else '<='} {bound:g}"
    return {"figure": name, "value": value, "bound": text, "kept": kept, "detail": detail}


def _peak(ours: Mapping[str, Any]) -> dict[str, Any]:
    """Compare the memory of the GPU that is predicted after a block with the most seen in use."""
    estimated, predicted = (
        ours.get(name, {}).get("device_peak_bytes") or None for name in ("plan", "trial")
    )
    runs = [ours.get("ours", {}).get(name, {}) for name in ("first", "watched")]
    seen = [run["used_peak"] - run["used_before"] for run in runs if "used_peak" in run]
    measured = max(seen, default=0) or None
    value = _ratio(predicted or estimated, measured)
    own = ours.get("ours", {}).get("peak_bytes")
    detail = (
        f"estimated {_gb(estimated)}, predicted after a block {_gb(predicted)}, "
        f"in use {_gb(measured)}, cells say {_gb(own)}"
    )
    large = ours.get("volume_bytes", 0) > _SMALL_BYTES
    kept = 1.0 <= value <= _PEAK_MARGIN if value is not None and large else None
    bound = f"1 to {_PEAK_MARGIN:g}"
    name = "predicted / measured GPU memory"
    return {"figure": name, "value": value, "bound": bound, "kept": kept, "detail": detail}


def _idle(ours: Mapping[str, Any]) -> dict[str, Any]:
    told = [
        seconds for seconds in ours.get("ours", {}).get("idle_seconds", ()) if seconds is not None
    ]
    if not told:
        return _figure("idle seconds per block", None, None, "")
    detail = f"median; sum {_s(sum(told))}, most {_s(max(told))}, {len(told)} blocks"
    return _figure("idle seconds per block", median(told), None, detail)


def _crowd(run: Any) -> dict[str, Any]:
    if not isinstance(run, Mapping) or "wrong_voxels" not in run:
        text = run.get("error", run.get("skipped", "")) if isinstance(run, Mapping) else ""
        failed = False if text and "error" in run else None
        return {"figure": "run beside another process", "value": None, "bound": "complete",
                "kept": failed, "detail": text}  # fmt: skip
    events = ", ".join(f"{count} {name}" for name, count in sorted(run.get("events", {}).items()))
    detail = f"{_gb(run['free_bytes'])} free, {_s(median(run['seconds']))}; {events}"
    return _figure("voxels unlike the whole array's", run["wrong_voxels"], 0, detail)


def _seconds(found: Mapping[str, Any], path: str) -> float | None:
    """Return the median of what was measured at a path."""
    for name in path.split("/"):
        value = found.get(name)
        if not isinstance(value, Mapping):
            return None
        found = value
    seconds = found.get("seconds") or found.get("first_seconds")
    return median(seconds) if seconds else None


def _movement(peers: Mapping[str, Any]) -> float | None:
    """Return the least over the numbers of threads that were tried."""
    tried = peers.get("floors", {}).get("movement", {})
    found = [_seconds(tried, threads) for threads in tried]
    return min((seconds for seconds in found if seconds is not None), default=None)


def _ratio(value: float | None, other: float | None) -> float | None:
    return value / other if value is not None and other else None


def _s(seconds: float | None) -> str:
    return "not measured" if seconds is None else f"{seconds:.3f} s"


def _gb(nbytes: float | None) -> str:
    return "not known" if nbytes is None else f"{nbytes / 1e9:.2f} GB"


def as_text(results: Mapping[str, Any]) -> str:
    """Return all that was found, for a terminal: measurements, how parts ended, ratios, bounds."""
    lines = []
    for part in results["parts"]:
        lines += _measurements(part)
    lines += ["", "how parts ended"]
    for part in results["parts"]:
        error = (part["error"] or "").splitlines()[:1]
        told = [f"{part['status']:<8}", f"{part['seconds']:6.1f} s", part["name"], *error]
        lines.append("  " + "  ".join(told))
    lines += ["", "ratios (columns with a slash: to the time of gpublocks)", *_ratios(results)]
    lines += ["", "bounds"]
    for figure in results["figures"]:
        if figure["kept"] is not None:
            kept = "kept    " if figure["kept"] else "NOT KEPT"
            value = "" if figure["value"] is None else f" {figure['value']:.3g}"
            line = f"  {kept}  {figure['case']}: {figure['figure']}{value} ({figure['bound']})"
            lines.append(line + (f"; {figure['detail']}" if figure["detail"] else ""))
    return "\n".join(lines)


def _ratios(results: Mapping[str, Any]) -> list[str]:
    """Return a table with a row for each function and volume, a column for each figure."""
    cases: dict[str, dict[str, Any]] = {}
    for figure in results["figures"]:
        if not figure["case"].endswith(" held"):
            cases.setdefault(figure["case"], {})[figure["figure"]] = figure["value"]
    columns = list(dict.fromkeys(name for found in cases.values() for name in found))
    short = [_SHORT.get(name, name.replace(" / gpublocks", " /")) for name in columns]
    rows = [("case", *short)]
    for case, found in cases.items():
        values = [found.get(name) for name in columns]
        rows.append((case, *["-" if value is None else f"{value:.3g}" for value in values]))
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    return ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _measurements(part: Mapping[str, Any]) -> list[str]:
    """Return a line for each group of values; plans and long lists are for the file only."""
    lines = [f"  {path}: {text}" for path, text in _flat(part["found"], "") if text]
    return [f"{part['name']}: {part['measures']}", *lines] if lines else []


def _flat(found: Mapping[str, Any], path: str) -> Iterator[tuple[str, str]]:
    told: list[str] = []
    if isinstance(found.get("seconds"), list) and found["seconds"]:
        low, middle, high = (1e3 * f(found["seconds"]) for f in (min, median, max))
        told.append(f"{middle:.2f} ms ({low:.2f} .. {high:.2f})")
        if "bytes" in found:
            told.append(f"{found['bytes'] / middle / 1e6:.2f} GB/s")
    for name, value in found.items():
        if name == "bytes" or isinstance(value, Mapping):
            continue
        if isinstance(value, float):
            told.append(f"{name} {value:.4g}")
        elif not isinstance(value, list):
            told.append(f"{name} {value}")
        elif len(value) <= 3 and not any(isinstance(item, float | list) for item in value):
            told.append(f"{name} {json.dumps(value)}")
    yield path or ".", "  ".join(told)
    for name, value in found.items():
        if isinstance(value, Mapping) and name not in _FILE_ONLY:
            yield from _flat(value, f"{path}/{name}" if path else name)
