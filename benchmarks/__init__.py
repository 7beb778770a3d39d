"""The command line of the benchmarks, and their results. Pure."""
