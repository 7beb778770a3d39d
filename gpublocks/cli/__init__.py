"""The command line: arguments to the front door, and back to text. Touches what is behind it."""

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from gpublocks import __version__
from gpublocks.errors import BlockError, GpublocksError, PlanError

__all__ = ["main"]

_DESCRIPTION = "Run a function over an n-D image that does not fit in memory, block by block."
_EXAMPLES = """\
examples:
  gpublocks demo
  gpublocks info
  gpublocks run 'median(3) | gaussian(sigma=2)' big.npy smooth.npy
  gpublocks run scipy.ndimage:gaussian_filter big.npy smooth.npy --arg sigma=2 --halo 8
  gpublocks plan scipy.ndimage:gaussian_filter big.npy --arg sigma=2 --halo 8
  gpublocks check scipy.ndimage:gaussian_filter big.npy --arg sigma=2 --halo 8
  gpublocks convert stack.tif brain.ome.zarr --levels 4
  gpublocks view brain.ome.zarr -o brain.png --max --level 2

Results go to standard output, progress and errors to standard error.
Exit status: 0 done, 1 a block failed, 2 something given is wrong, 130 interrupted.
"""
_PLAN_EXAMPLES = """\
examples:
  gpublocks plan scipy.ndimage:median_filter big.npy --arg size=5 --halo 2
  gpublocks plan my_filters:smooth big.npy out.npy --overlap 32 --memory 8GB --json

Takes the options of 'gpublocks run', and creates nothing.
"""
_RUN_EXAMPLES = """\
examples:
  gpublocks run gaussian big.npy smooth.npy --arg sigma=2
  gpublocks run 'white_tophat(15) | gaussian(sigma=1)' big.zarr cells.zarr
  gpublocks run scipy.ndimage:gaussian_filter big.npy smooth.npy --arg sigma=2 --halo 8
  gpublocks run scipy.ndimage:median_filter big.npy out.npy --arg size=1,5,5 --halo 0,2,2
  gpublocks run numpy:sqrt big.npy root.npy --overlap 0 --dtype float32
  gpublocks run my_filters:Cells.detect big.npy out.npy --arg mode=fast --overlap 40 \\
      --size-max 256 --axes all --memory 16GB

Filters of gpublocks.filters know how far they look. Of other functions it has to be said: with
--halo or --overlap the sizes of blocks are chosen; with neither, and without --size-max,
the whole source is one block. Where there are GPUs on which the function runs they compute, unless
--device or --processes says otherwise. A sink that does not exist is created once its type is
known, and has its name only when it is complete; one that exists is written into if it fits.
Standard output gets one line about the run; what the function prints goes to standard error.
"""
_CHECK_EXAMPLES = """\
examples:
  gpublocks check scipy.ndimage:gaussian_filter big.npy --arg sigma=2 --halo 8
  gpublocks check my_filters:smooth big.zarr --tolerance 1e-4

The function is called on parts of the source, and on noise, whole and cut in two: how far from the
cut results differ is the halo that it needs. The exit status is 1 if that is more than --halo, or
if no halo does.
"""
_CONVERT_EXAMPLES = """\
examples:
  gpublocks convert stack.tif brain.ome.zarr --levels 4 --chunks 64 --codec zstd:5
  gpublocks convert brain.ome.zarr/1 brain.nii.gz --dtype float32
  gpublocks convert 'planes/img_Z<Z,4>.tif' brain.h5:/raw/brain --compression gzip
  gpublocks convert camera.raw brain.zarr --shape 64,2048,2048 --dtype uint16 --offset 512

Voxels stay as they are. Axes whose names are known are put in the order that the sink's format
has: z, y, x in OME-Zarr and TIFF, x, y, z in NIfTI and MetaImage. Their names, spacing and units go
along where both formats have a place for them. It is done in blocks, by CPUs, and the sink has its
name only when it is complete.
"""
_VIEW_EXAMPLES = """\
examples:
  gpublocks view brain.ome.zarr -o brain.png --level 2
  gpublocks view stack.tif -o most.png --max
  gpublocks view channels.ome.zarr -o both.png --channel 0,1 --index z:120 --index t:0

Planes of more than 1000 pixels a side are reduced: of those in the middle every n-th voxel is
shown, of a maximum projection the brightest one. Never is the whole source in memory. Needs
matplotlib: pip install 'gpublocks[plot]'
"""
_BENCH_EXAMPLES = """\
examples:
  gpublocks bench list
  gpublocks bench run --quick
  gpublocks bench run 'gaussian-*' -o today.json --plot today.png
  gpublocks bench compare before.json today.json

Measure on a machine that does nothing else. The exit status is 1 if a case failed, and of 'compare'
if something got slower.
"""
_DEMO_EXAMPLES = """\
Takes the background off a synthetic light-sheet image of a brain and enhances its cells (opening,
then difference of Gaussians), from a file to a file, by worker processes, in blocks whose sizes
are chosen; compares the result with that of one call on the whole image; and saves a
picture of both. No other file is left. Needs matplotlib: pip install 'gpublocks[plot]'
"""


class _Parser(argparse.ArgumentParser):
    """A parser that raises what is wrong, so that all errors are told in the same way."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            **options, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )
        # Python 3.14 colours help texts.
        self.color = False

    def error(self, message: str) -> NoReturn:
        raise PlanError(f"{message}; see '{self.prog} --help'")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments after the command's name; by default those of this process.

    Returns
    -------
    int
        Exit status: 0 done, 1 a block failed, 2 something given is wrong, 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        options = _parser().parse_args(arguments)
        status = _do(options)
        sys.stdout.flush()
    except KeyboardInterrupt as error:
        _tell(f"interrupted{f' {error}' if error.args else ''}", debug)
        return 130
    except BrokenPipeError:
        # The reader of standard output has left; Python would complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        status, text = _explain(error)
        _tell(f"error: {text}", debug)
    return status


def _do(options: argparse.Namespace) -> int:
    """Do what a command asks for; rooms are loaded when they are needed."""
    if options.command == "info":
        from gpublocks.cli.info import info

        info(json_wanted=options.json)
    elif options.command == "demo":
        from gpublocks.cli.demo import demo

        demo(options.output, options.shape)
    elif options.command == "bench":
        from gpublocks.cli.bench import bench_installed

        return bench_installed(options)
    elif options.command == "view":
        from gpublocks.cli import sources, view

        view.view(options, sources.open_source(options))
    elif options.command == "convert":
        from gpublocks.cli import convert, sinks, sources, work

        source, sink = sources.open_source(options), sinks.make_sink(options, in_place=False)
        if not options.keep_axes:
            source = convert.arranged(source, sink)
        work.run(options, convert.same, {}, source, sink)
    elif options.command == "check":
        from gpublocks.cli import functions, work
        from gpublocks.cli.check import check

        keywords = functions.parse_keywords(options.arg)
        function, keywords = functions.load_function(options.function, keywords)
        halo = None if options.halo is None else work.numbers("halo", options.halo)
        return check(options, function, keywords, halo)
    else:
        from gpublocks.cli import functions, sinks, sources, work

        command = work.plan if options.command == "plan" else work.run
        keywords = functions.parse_keywords(options.arg)
        function, keywords = functions.load_function(options.function, keywords)
        source = sources.open_source(options)
        command(options, function, keywords, source, sinks.make_sink(options, in_place=True))
    return 0


def _tell(text: str, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    print(f"gpublocks: {text}", file=sys.stderr)


def _explain(error: Exception) -> tuple[int, str]:
    """Return the exit status for an error, and one line about it."""
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    else:
        text = str(error)
    text = " ".join(text.split())
    notes = [note for note in getattr(error, "__notes__", ()) if " failed in stage " in note]
    if isinstance(error, BlockError):
        return 1, text
    if notes:
        return 1, f"{notes[0].partition(chr(10))[0]}: {type(error).__name__}: {text}"
    if isinstance(error, GpublocksError | OSError):
        return 2, text
    return 1, f"{type(error).__name__}: {text} (--debug shows where)"


def _parser() -> _Parser:
    parser = _Parser(prog="gpublocks", description=_DESCRIPTION, epilog=_EXAMPLES)
    parser.add_argument("--version", action="version", version=f"gpublocks {__version__}")
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, title="commands"
    )
    text = "show what this machine offers: CPUs, caches, memory, GPUs, libraries"
    info = commands.add_parser("info", help=text, description=_sentence(text))
    info.add_argument("--json", action="store_true", help="print JSON")

    text = "show what a run would do, without doing it"
    plan = commands.add_parser(
        "plan", help=text, description=_sentence(text), epilog=_PLAN_EXAMPLES
    )
    _add_work(plan, sink="?")
    plan.add_argument("--json", action="store_true", help="print JSON")
    plan.add_argument(
        "--trial",
        action="store_true",
        help="call the function on the first block to measure the memory that it takes",
    )

    text = "run a function over a source, block by block, and write the result into a sink"
    run = commands.add_parser("run", help=text, description=_sentence(text), epilog=_RUN_EXAMPLES)
    _add_work(run, sink=None)
    _add_telling(run)

    text = "find out on samples how far a function looks, and whether a halo is large enough"
    check = commands.add_parser(
        "check", help=text, description=_sentence(text), epilog=_CHECK_EXAMPLES
    )
    _add_check(check)

    text = "write a source into a new file of another format, type or layout, block by block"
    convert = commands.add_parser(
        "convert", help=text, description=_sentence(text), epilog=_CONVERT_EXAMPLES
    )
    _add_convert(convert)
    _add_telling(convert)

    text = "save a picture of a source: planes in its middle, or its maximum"
    view = commands.add_parser(
        "view", help=text, description=_sentence(text), epilog=_VIEW_EXAMPLES
    )
    _add_view(view)

    text = "run the main job on a sample volume, check the result and draw it"
    demo = commands.add_parser(
        "demo", help=text, description=_sentence(text), epilog=_DEMO_EXAMPLES
    )
    demo.add_argument(
        "-o",
        "--output",
        metavar="PNG",
        default="gpublocks-demo.png",
        help="picture that is written (default: %(default)s)",
    )
    demo.add_argument(
        "--shape",
        metavar="Z,Y,X",
        default="128,256,256",
        help="voxels of the sample volume (default: %(default)s)",
    )
    text = "measure how fast gpublocks is on this machine, and compare results"
    bench = commands.add_parser(
        "bench", help=text, description=_sentence(text), epilog=_BENCH_EXAMPLES
    )
    _add_bench(bench)
    for command in (info, plan, run, check, convert, view, demo, bench):
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _add_work(parser: argparse.ArgumentParser, *, sink: str | None) -> None:
    """Add the arguments that plan and run share."""
    from gpublocks.cli import sinks, sources

    _add_function(parser)
    parser.add_argument("sink", metavar="SINK", nargs=sink, help="file that is written")
    blocks = parser.add_argument_group(
        "blocks", "Each N is one number for all split axes, or a list for each, such as 8,16,16."
    )
    for flag, text in (
        ("--halo", "voxels on each side that one voxel of the result depends on"),
        ("--overlap", "voxels that neighbouring blocks share: twice the halo"),
        ("--size-max", "longest blocks; 'full' makes one block"),
        ("--size-min", "shortest blocks; 'fixed' makes all of them the longest"),
        ("--size-multiple-of", "blocks are a multiple of it long"),
        ("--axes", "axes that are split, or 'all' (write --axes=-1,-2 for negative ones)"),
    ):
        blocks.add_argument(flag, metavar="N", help=text)
    where = parser.add_argument_group("where")
    for flag, metavar, text in (
        ("--memory", "BYTES", "host memory that may be in flight, such as 8GB"),
        ("--processes", "N", "number of workers, or 'serial' (default: all CPUs)"),
        ("--executor", "NAME", "serial, threads, processes or cuda"),
        ("--device", "NAME", "auto, cpu, cuda for all GPUs, or some of them: cuda:0,cuda:2"),
        ("--device-memory", "BYTES", "memory that may be taken on each GPU, such as 20GB"),
    ):
        where.add_argument(flag, metavar=metavar, help=text)
    result = parser.add_argument_group("result")
    for flag, metavar, text in (
        ("--dtype", "TYPE", "type of a new sink (default: that of the first result)"),
        ("--casting", "RULE", "no, equiv, safe, same_kind or unsafe"),
        ("--mask", "FILE", "array of bool; blocks with nothing inside are not computed"),
    ):
        result.add_argument(flag, metavar=metavar, help=text)
    sources.add_options(parser)
    sinks.add_options(parser)


def _add_function(parser: argparse.ArgumentParser) -> None:
    """Add a function, its keyword arguments and a source."""
    add = parser.add_argument
    add(
        "function",
        metavar="FUNCTION",
        help="module:name or module:Class.method; modules of the current folder are found; or "
        "filters of gpublocks, such as gaussian or 'median(3) | gaussian(sigma=2)'",
    )
    add("source", metavar="SOURCE", help="file that is read, such as big.npy")
    add(
        "-a",
        "--arg",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="keyword argument of the function, repeated for more; the value is a Python literal "
        "(2, 1.5, True, None, 1,5,5, '[1, 2]') or else a text",
    )


def _add_check(parser: argparse.ArgumentParser) -> None:
    _add_function(parser)
    add = parser.add_argument
    add("--halo", metavar="N", help="one number, or one for each axis (default: the filter's)")
    add("--samples", metavar="N", default="6", help="how many are tried (default: %(default)s)")
    add(
        "--tolerance",
        metavar="X",
        default="0",
        help="difference between voxels that is none (default: %(default)s)",
    )


def _add_telling(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what is told during a run."""
    parser.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        help="show a progress bar (default: if standard error is a terminal)",
    )
    parser.add_argument(
        "--verbose", action="store_true", help="print a line when a block begins and ends"
    )
    parser.add_argument(
        "--report",
        metavar="FILE",
        help="save what took how long: run.html to be read, run.json for gpublocks.Report.load, "
        "run.trace.json for Perfetto",
    )


def _add_convert(parser: argparse.ArgumentParser) -> None:
    from gpublocks.cli import sinks, sources

    parser.set_defaults(function="convert", overlap="0", device="cpu")
    parser.add_argument("source", metavar="SOURCE", help="file that is read")
    parser.add_argument("sink", metavar="SINK", help="file that is created")
    for flag, metavar, text in (
        ("--dtype", "TYPE", "type of the sink (default: that of the source)"),
        ("--casting", "RULE", "unsafe lets values wrap that the type cannot hold"),
        ("--memory", "BYTES", "memory that may be in flight, such as 8GB"),
        ("--processes", "N", "number of workers, or 'serial' (default: all CPUs)"),
    ):
        parser.add_argument(flag, metavar=metavar, help=text)
    parser.add_argument(
        "--keep-axes",
        action="store_true",
        help="leave axes in the order that they have, whatever the format of the sink calls them",
    )
    sources.add_options(parser)
    sinks.add_options(parser)


def _add_bench(parser: argparse.ArgumentParser) -> None:
    from gpublocks.cli.bench import add_commands

    add_commands(parser.add_subparsers(dest="task", metavar="TASK", required=True, title="tasks"))


def _add_view(parser: argparse.ArgumentParser) -> None:
    from gpublocks.cli import sources

    add = parser.add_argument
    add("source", metavar="SOURCE", help="file that is read")
    add("-o", "--output", metavar="PNG", required=True, help="picture that is written")
    add("--max", action="store_true", help="show the maximum along each axis")
    add("--channel", metavar="N", help="channels that are shown, such as 0,2 (default: 0)")
    add(
        "--index",
        metavar="AXIS:N",
        action="append",
        default=[],
        help="what is shown of an axis, given by its name or number, such as z:120 or 0:3; "
        "repeated for more (default: the middle)",
    )
    sources.add_options(parser)
