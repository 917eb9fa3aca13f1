#!/usr/bin/env python3
"""What compiling with fulmen costs: seconds, memory and object size of twenty lines, against the same with <torch/torch.h> alone.

    cmake --workflow --preset bench
    python bench/build.py [--tree build/bench] [--rounds 3] [--headers] [--json FILE]

Compilers, options and include folders are those of the build tree. Each figure is the minimum of interleaved rounds, of processor time. With
--headers each public header is compiled alone, too (some minutes).
"""

import argparse
import json
import os
import pathlib
import shlex
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
SOURCES = ROOT / "bench" / "build"


def compile_command(tree):
    """The command of the build tree without source, output, dependency files and precompiled header."""
    entries = json.loads((tree / "compile_commands.json").read_text())
    entry = next(e for e in entries if e["file"].endswith("optim_bench.cpp"))
    words, out, skip = shlex.split(entry["command"]), [], 0
    for word in words:
        if skip:
            skip -= 1
        elif word in ("-o", "-c", "-include", "-MF", "-MT", "-include-pch"):
            skip = 1
        elif word in ("-MD", "-Winvalid-pch", "-Xclang") or word == entry["file"]:
            pass
        else:
            out.append(word)
    return out


def run(command):
    """@return seconds of processor time, peak memory in MiB"""
    pid = os.posix_spawnp(command[0], command, os.environ)
    _, status, usage = os.wait4(pid, 0)
    if status != 0:
        sys.exit("failed: " + shlex.join(command))
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tree", type=pathlib.Path, default=ROOT / "build" / "bench")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--headers", action="store_true")
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    if not (args.tree / "compile_commands.json").exists():
        sys.exit(f"{args.tree} is no build tree: make it with cmake --workflow --preset bench, or name it with --tree")
    base = compile_command(args.tree)
    folder = pathlib.Path(tempfile.mkdtemp())
    compiled = ["-DFULMEN_COMPILED"]

    def precompile(name, text, options):
        """@return options that bring in the precompiled header"""
        header = folder / name
        header.write_text(text)
        print(f"precompiling {name} ...", file=sys.stderr, flush=True)
        once[name] = run(base + options + ["-x", "c++-header", str(header), "-o", f"{header}.gch"])
        return options + ["-include", str(header)]

    once = {}
    torch_pch = precompile("torch.hpp", "#include <torch/torch.h>\n", [])
    pch = precompile("fulmen::pch", "#include <torch/torch.h>\n#include <fulmen/fulmen.hpp>\n", compiled)
    narrow_pch = precompile("narrow.hpp", "".join(line for line in (SOURCES / "narrow.cpp").read_text().splitlines(True)
                                                  if line.startswith("#include")), compiled)
    print("compiling fulmen::compiled ...", file=sys.stderr, flush=True)
    once["fulmen::compiled"] = run(base + compiled + ["-DFULMEN_COMPILING", "-c", str(ROOT / "cmake" / "compiled.cpp"), "-o",
                                                      str(folder / "compiled.o")])

    programs = {
        "torch/torch.h": ("with_torch.cpp", []),
        "fulmen/fulmen.hpp": ("with_fulmen.cpp", []),
        "fulmen, narrow includes": ("narrow.cpp", []),
        "fulmen::compiled": ("with_fulmen.cpp", compiled),
        "the same, narrow includes": ("narrow.cpp", compiled),
        "the same, 1 callback more": ("callbacks.cpp", compiled + ["-DCALLBACKS=1"]),
        "the same, 9 callbacks more": ("callbacks.cpp", compiled + ["-DCALLBACKS=9"]),
        "torch/torch.h, precompiled": ("with_torch.cpp", torch_pch),
        "fulmen::pch": ("with_fulmen.cpp", pch),
        "narrow includes, precompiled": ("narrow.cpp", narrow_pch),
    }

    best = {}
    for number in range(args.rounds):
        for name, (source, more) in programs.items():
            print(f"round {number + 1} of {args.rounds}: {name}", file=sys.stderr, flush=True)
            out = folder / "out.o"
            seconds, memory = run(base + more + ["-c", str(SOURCES / source), "-o", str(out)])
            old = best.get(name, (float("inf"), float("inf"), 0))
            best[name] = (min(old[0], seconds), min(old[1], memory), out.stat().st_size / 1024)

    torch_seconds, torch_memory, torch_size = best["torch/torch.h"]
    print(f"{'':28}{'s':>8}{'':8}{'MiB':>8}{'':8}{'KiB':>8}")
    for name, (seconds, memory, size) in best.items():
        print(f"{name:28}{seconds:8.1f}{seconds / torch_seconds:7.2f}x{memory:8.0f}{memory / torch_memory:7.2f}x"
              f"{size:8.0f}{size / torch_size:7.2f}x")
    more = (best["the same, 9 callbacks more"][0] - best["the same, 1 callback more"][0]) / 8
    print(f"a callback with three hooks more: {more:.2f} s")
    print("once a build tree: " + ", ".join(f"{name} {seconds:.0f} s" for name, (seconds, _) in once.items()))

    headers = {}
    if args.headers:
        for path in sorted((ROOT / "include").rglob("*.hpp")):
            name = str(path.relative_to(ROOT / "include"))
            one = folder / "one.cpp"
            one.write_text(f"#include <{name}>\n")
            headers[name] = [run(base + options + ["-fsyntax-only", str(one)])[0] for options in ([], compiled)]
            print(f"{name:48}{headers[name][0]:6.1f} s, with fulmen::compiled {headers[name][1]:6.1f} s", flush=True)
    if args.json:
        args.json.write_text(json.dumps({"programs": best, "once": once, "headers": headers}, indent=1) + "\n")


if __name__ == "__main__":
    main()
