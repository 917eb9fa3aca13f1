#!/usr/bin/env python3
"""What driving a step costs, by hand, by fulmen, and by virtual functions, std::function and type-erased wrappers.

    cmake --workflow --preset bench
    python bench/dispatch.py [--bench build/bench/bench/dispatch_bench] [--json FILE]

Prints nanoseconds and (where valgrind is installed) instructions a batch, for steps that do nothing and tiny ones, with 0, 1, 4
and 16 callbacks of which none, half or all answer. Times are the minimum of interleaved repetitions.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import callgrind

PEERS = ["by hand", "fulmen", "virtual", "std::function", "type-erased"]


def times(program):
    """Peer and case to nanoseconds a step."""
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "times.json"
        command = [program, "--benchmark_enable_random_interleaving=true", "--benchmark_repetitions=5",
                   "--benchmark_min_time=0.02", f"--benchmark_out={out}", "--benchmark_out_format=json"]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode != 0:
            sys.exit(f"{program} failed:\n{run.stderr[-2000:]}")
        best = {}
        for one in json.loads(out.read_text())["benchmarks"]:
            if one["run_type"] == "iteration":
                key = tuple(one["run_name"].split("/", 1))
                best[key] = min(best.get(key, float("inf")), one["ns_a_step"])
        return best


def instructions(program):
    """Peer and case to instructions a batch."""
    if not shutil.which("valgrind"):
        return {}
    with callgrind.counted(program, "count") as runs:
        return {tuple(name.split("/", 1)): callgrind.of_one(of_name) for name, of_name in runs.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bench", default="build/bench/bench/dispatch_bench", help="the program dispatch_bench")
    parser.add_argument("--json", type=pathlib.Path, help="writes the figures to this file too")
    args = parser.parse_args()
    if not pathlib.Path(args.bench).exists():
        sys.exit(f"{args.bench} does not exist: build it with cmake --workflow --preset bench, or name it with --bench")
    print("counting instructions ...", file=sys.stderr, flush=True)
    counted = instructions(args.bench)
    print("timing ...", file=sys.stderr, flush=True)
    timed = times(args.bench)
    cases = sorted({case for _, case in timed}, key=lambda case: (case.split("/")[0], *map(int, case.split("/")[1:])))
    print("a batch: ns | instructions")
    print(f"{'step':9}{'callbacks':>10}{'answer':>8}" + "".join(f"{peer:>18}" for peer in PEERS))
    for case in cases:
        step, callbacks, answering = case.split("/")
        cells = []
        for peer in PEERS:
            count = counted.get((peer, case))
            cells.append(f"{timed[peer, case]:8.2f} | " + (f"{count:6.1f}" if count is not None else "     -"))
        print(f"{step:9}{callbacks:>10}{answering:>8}" + "".join(f"{cell:>18}" for cell in cells))
    if args.json:
        rows = [{"peer": peer, "case": case, "ns": timed[peer, case], "instructions": counted.get((peer, case))}
                for peer, case in timed]
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
