"""Other libraries that do what gpublocks does, each by one small function. Pure.

A function has the signature of `gpublocks.process`, and is given paths of files. Its module is
imported where it is measured.
"""

from dataclasses import replace

from gpublocks import bench

__all__ = ["PEERS"]

_DASK = bench.Peer(
    "dask, threads",
    "benchmarks.peers.dask_arrays:map_overlap",
    needs=("dask.array",),
    options={"scheduler": "threads"},
)

PEERS = (
    *bench.PEERS,
    bench.Peer("joblib", "benchmarks.peers.joblib_loop:loop", needs=("joblib",), often=False),
    _DASK,
    # Starts its processes anew for each call.
    replace(
        _DASK, name="dask, processes", options={"scheduler": "processes"}, often=False, warm=False
    ),
    replace(
        _DASK,
        name="dask, cluster",
        subject="benchmarks.peers.dask_arrays:map_overlap_on_cluster",
        needs=("dask.array", "distributed"),
        options={},
        quick=False,
    ),
    replace(
        _DASK, name="dask, auto chunks", cut="benchmarks.peers.dask_arrays:auto_block", quick=False
    ),
    bench.Peer(
        "scikit-image",
        "benchmarks.peers.image_blocks:apply_parallel",
        needs=("skimage.util", "dask.array"),
    ),
    bench.Peer(
        "cubed",
        "benchmarks.peers.cubed_arrays:map_overlap",
        needs=("cubed",),
        cut="benchmarks.peers.cubed_arrays:stored_block",
        suffixes=(".zarr",),
        often=False,
        warm=False,
    ),
)
