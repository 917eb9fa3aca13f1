#!/usr/bin/env python3
"""A training step end to end: fulmen against LibTorch's plain loop, an expert's, Python's, Lightning, Ignite and Accelerate.

    cmake --workflow --preset peers     # builds step_bench, installs the Python peers into build/deps
    python bench/step.py [--models micro,mlp] [--peers fulmen,plain,lightning] [--threads 1,2] [--json FILE]
    python bench/step.py --count        # the C++ peers' instructions a step instead; needs valgrind

All peers start from the same weights, take the same batches and must come to the same loss before anything is timed. Each is
a process of its own; in a round all are measured one after another, so that what else the machine does hits all of them.
Printed are the minimum of the rounds, how many times as long as fulmen's that is, that ratio in the single rounds (lowest to
highest), and what a fit of one epoch takes besides its steps: set-up, checkpoint, log file.
"""

import argparse
import fcntl
import json
import os
import pathlib
import pty
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
import threading

import callgrind

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODELS = {"micro": "MLP 4-8-2, batch 8", "mlp": "MLP 784-64-10, batch 64",
          "mlp256": "MLP 784-256-256-10, batch 64", "cnn": "2 convolutions on 28x28, batch 32",
          "transformer": "2 blocks of 32 channels, 16 tokens, batch 16"}
# Name of a peer: what the program calls it, whether its output goes to a terminal.
PEERS = {
    "fulmen": ("fulmen", False),
    "fulmen terminal": ("fulmen", True),
    "composed": ("composed", False),
    "composed barebones": ("composed-barebones", False),
    "composed by hand": ("hand", False),
    "fulmen barebones": ("barebones", False),
    "expert": ("expert", False),
    "plain": ("plain", False),
    "python": ("python", False),
    "python fused": ("python-fused", False),
    "python compiled": ("python-compiled", False),
    "lightning": ("lightning", False),
    "lightning terminal": ("lightning", True),
    "lightning barebones": ("lightning-barebones", False),
    "ignite": ("ignite", False),
    "accelerate": ("accelerate", False),
}
CPP = {"fulmen", "barebones", "composed", "composed-barebones", "hand", "expert", "plain"}
SAME_LOSS = 1e-5  # relative


class Peer:
    """A process that trains when asked to."""

    def __init__(self, command, on_terminal, environment):
        self.log = tempfile.TemporaryFile()
        output, self.master = self.log, None
        if on_terminal:
            self.master, output = pty.openpty()
            fcntl.ioctl(output, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 120, 0, 0))
            threading.Thread(target=self.drain, daemon=True).start()
        self.process = subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output,
                                        env=environment)
        if on_terminal:
            os.close(output)
        words = self.process.stdout.readline().split()
        self.loss = float(words[1]) if words[:1] == ["ready"] else None

    def drain(self):
        try:
            while read := os.read(self.master, 65536):
                self.log.write(read)
        except OSError:
            pass  # the program has ended

    def measure(self, steps):
        """@return nanoseconds a step, nanoseconds around the steps"""
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        words = self.process.stdout.readline().split()
        if len(words) != 2:
            raise RuntimeError(self.why())
        return float(words[0]), float(words[1])

    def why(self):
        """The last line that the program wrote before it failed."""
        self.close()
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:200] if lines else f"ended with {self.process.returncode}"

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def readable(ns):
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if ns >= size:
            return f"{ns / size:.4g} {unit}"
    return f"{ns:.3g} ns"


def median(values):
    return sorted(values)[len(values) // 2]


def make_data(args, model, folder):
    file = pathlib.Path(folder) / f"{model}.pt"
    if not file.exists():
        subprocess.run([args.bench, "write", model, "1", file], check=True)
    return file


def python_environment(args):
    """The environment of the Python peers: with the folder that the preset `peers` has filled, where it is."""
    environment = dict(os.environ, TERM="xterm-256color")
    installed = [p.parent for p in ROOT.glob("build/deps/peers-*/torch") if p.parent.suffix != ".partial"]
    sites = [args.site] if args.site else sorted(installed)
    if sites:
        environment["PYTHONPATH"] = os.pathsep.join([str(sites[-1]), *filter(None, [environment.get("PYTHONPATH")])])
    return environment


def start(args, names, model, threads, file):
    environment, peers = python_environment(args), {}
    for name in names:
        program, on_terminal = PEERS[name]
        command = [args.bench] if program in CPP else [args.python, str(ROOT / "bench" / "peers" / "python.py")]
        print(f"starting {name} ...", file=sys.stderr, flush=True)
        peer = Peer([*command, program, model, str(threads), str(file)], on_terminal, environment)
        if peer.loss is None:
            print(f"left out: {name}: {peer.why()}", file=sys.stderr, flush=True)
            continue
        peers[name] = peer
    losses = {name: peer.loss for name, peer in peers.items()}
    middle = median(losses.values())
    if any(not abs(loss - middle) <= SAME_LOSS * abs(middle) for loss in losses.values()):
        sys.exit("the peers do not do the same work; their losses after the same steps:\n" +
                 "\n".join(f"{name:24}{loss:.9g}" for name, loss in losses.items()))
    return peers


def table(args, names, model, threads, file):
    peers = start(args, names, model, threads, file)
    if "fulmen" not in peers:
        sys.exit("fulmen itself does not run, and all others are compared with it")
    steps = {name: max(64, int(args.seconds * 1e9 / peer.measure(64)[0])) for name, peer in peers.items()}
    a_step, around = {name: [] for name in peers}, {name: [] for name in peers}
    for number in range(args.rounds):
        print(f"round {number + 1} of {args.rounds}", file=sys.stderr, flush=True)
        for name, peer in peers.items():
            stepping, rest = peer.measure(steps[name])
            a_step[name].append(stepping), around[name].append(rest)
    for peer in peers.values():
        peer.close()

    loss = peers["fulmen"].loss
    print(f"\n{model}: {MODELS[model]}; {threads} thread(s), {args.rounds} rounds; loss after 128 steps {loss:.6g}")
    print(f"{'':24}{'a step':>12}{'/ fulmen':>10}{'in the rounds':>16}{'around an epoch':>18}")
    for name in peers:
        ratios = [a / b for a, b in zip(a_step[name], a_step["fulmen"])]
        print(f"{name:24}{readable(min(a_step[name])):>12}{min(a_step[name]) / min(a_step['fulmen']):9.2f}x"
              f"{f'{min(ratios):.2f}-{max(ratios):.2f}':>16}{readable(min(around[name])):>18}")
    sys.stdout.flush()
    return [{"model": model, "threads": threads, "peer": name, "loss": peers[name].loss, "steps": steps[name],
             "ns_a_step": a_step[name], "ns_around": around[name]} for name in peers]


def instructions(args, program, model):
    """Instructions a step. The profile of the longer run stays in the folder --profiles, if given."""
    with callgrind.counted(args.bench, program, model, 1, "count") as runs:
        if args.profiles:
            shutil.copy(runs["steps"][-1].profile, args.profiles / f"{program}-{model}.callgrind")
        return callgrind.of_one(runs["steps"])


def count(args, names, models):
    if "expert" not in names or not CPP.issuperset(PEERS[name][0] for name in names):
        sys.exit("--count compares with the expert's loop, and counts the C++ peers only")
    rows, too_many = [], False
    print(f"instructions a step{'':5}" + "".join(f"{name:>20}{'/ expert':>10}" for name in names), flush=True)
    for model in models:
        found = {name: instructions(args, PEERS[name][0], model) for name in names}
        print(f"{model:24}" + "".join(f"{found[name]:20,.0f}{found[name] / found['expert']:10.4f}" for name in names), flush=True)
        rows += [{"model": model, "peer": name, "instructions_a_step": found[name]} for name in names]
        too_many |= any(found[name] > args.at_most * found["expert"] for name in names if name.startswith("fulmen") or name in ("composed", "composed barebones"))
    if too_many:
        sys.exit(f"fulmen takes more than {args.at_most} times the instructions of the expert's loop")
    return rows


def choice(text, all_of_them):
    chosen = [word.strip() for word in text.split(",")] if text else list(all_of_them)
    for one in chosen:
        if one not in all_of_them:
            sys.exit(f"there is no '{one}', only: {', '.join(all_of_them)}")
    return chosen


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bench", default=str(ROOT / "build/bench/bench/step_bench"), help="the program step_bench")
    parser.add_argument("--models", help="with commas between them: " + ", ".join(MODELS))
    parser.add_argument("--peers", help="with commas between them: " + ", ".join(PEERS))
    parser.add_argument("--threads", default="1,2", help="counts of threads, with commas between them")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.3, help="how long a measurement takes")
    parser.add_argument("--python", default=sys.executable, help="the Python of the Python peers")
    parser.add_argument("--site", type=pathlib.Path, help="a folder with their packages, if not build/deps/peers-...")
    parser.add_argument("--count", action="store_true", help="counts instructions in place of measuring time")
    parser.add_argument("--at-most", type=float, default=float("inf"),
                        help="with --count: fails if fulmen takes more than so many times the expert's instructions")
    parser.add_argument("--profiles", type=pathlib.Path, help="with --count: leaves the profiles in this folder")
    parser.add_argument("--json", type=pathlib.Path, help="writes the figures to this file too")
    args = parser.parse_args()
    if not pathlib.Path(args.bench).exists():
        sys.exit(f"{args.bench} does not exist: build it with cmake --workflow --preset peers, or name it with --bench")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        if args.count:
            rows = count(args, choice(args.peers or "expert,fulmen barebones,fulmen,plain", PEERS),
                         choice(args.models or "micro,mlp", MODELS))
        else:
            names = choice(args.peers, PEERS)
            for model in choice(args.models, MODELS):
                for threads in map(int, args.threads.split(",")):
                    rows += table(args, names, model, threads, make_data(args, model, folder))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
