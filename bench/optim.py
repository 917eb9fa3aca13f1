#!/usr/bin/env python3
"""Times the step of each optimizer: fulmen's, torch::optim's and Python's, in turn, and prints the ratios.

    cmake --workflow --preset bench
    python bench/optim.py [--bench build/bench/bench/optim_bench] [--only Adam,SGD] [--threads 1] [--json FILE]

The Python that runs this must have torch; without it, Python's columns stay empty. Each figure is the minimum of several
rounds; in a round all peers are measured one after another, so that what else the machine does hits all of them.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time

try:
    import torch
except ImportError:
    torch = None

SETS = {
    "micro": [(8, 4), (8,), (2, 8), (2,)],
    "mlp": [(64, 784), (64,), (10, 64), (10,)],
    "200 small": [(8, 8)] * 200,
    "100 M": [(10_000, 10_000)],
}
STEPS = {"micro": 2000, "mlp": 200, "200 small": 100, "100 M": 1}  # of fulmen's; slower peers take fewer
OPTIMIZERS = ["SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adadelta", "Adagrad", "RMSprop", "Rprop", "ASGD",
              "Adafactor", "Lion", "Muon"]
OPTIONS = {"SGD": {"momentum": 0.9}}
FUSED = {"SGD", "Adam", "AdamW", "Adagrad"}  # those for which Python has a kernel of its own on the CPU


class Program:
    """optim_bench as a peer."""

    def __init__(self, program, peer, optimizer, tensors, threads):
        self.process = subprocess.Popen([program, peer, optimizer, tensors, str(threads)], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.there = self.process.stdout.readline() == "ready\n"
        if not self.there and self.process.wait() != 3:
            sys.exit(f"{program} {peer} {optimizer} '{tensors}' failed")

    def measure(self, steps):
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self):
        if self.there:
            self.process.stdin.close()
            self.process.wait()


class Python:
    """torch.optim as a peer."""

    def __init__(self, optimizer, tensors, **options):
        kind = getattr(torch.optim, optimizer, None) if torch else None
        self.there = kind is not None and not (optimizer == "Muon" and tensors in ("micro", "mlp"))
        if self.there:
            parameters = [torch.randn(shape, requires_grad=True) for shape in SETS[tensors]]
            for p in parameters:
                p.grad = torch.randn_like(p)
            self.optimizer = kind(parameters, **OPTIONS.get(optimizer, {}), **options)
            self.optimizer.step()

    def measure(self, steps):
        begin = time.perf_counter_ns()
        for _ in range(steps):
            self.optimizer.step()
        return (time.perf_counter_ns() - begin) / steps

    def close(self):
        self.optimizer = None


def readable(ns):
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if ns >= size:
            return f"{ns / size:.3g} {unit}"
    return f"{ns:.3g} ns"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bench", default="build/bench/bench/optim_bench", help="the program optim_bench")
    parser.add_argument("--only", help="these optimizers, with commas between them")
    parser.add_argument("--sets", help="these sets of tensors, with commas between them: " + ", ".join(SETS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=pathlib.Path, help="writes the figures (nanoseconds a step) to this file too")
    args = parser.parse_args()
    if not pathlib.Path(args.bench).exists():
        sys.exit(f"{args.bench} does not exist: build it with cmake --workflow --preset bench, or name it with --bench")
    if torch:
        torch.set_num_threads(args.threads)

    columns = ["torch::optim", "Python", "Python fused"]
    print(f"{args.threads} thread(s); a step of fulmen's, and how many times as long the others take", flush=True)
    print(f"{'':12}{'':12}{'fulmen':>10}" + "".join(f"{c:>14}" for c in columns), flush=True)
    rows = []
    for tensors in args.sets.split(",") if args.sets else SETS:
        for optimizer in args.only.split(",") if args.only else OPTIMIZERS:
            peers = {"fulmen": Program(args.bench, "fulmen", optimizer, tensors, args.threads),
                     "torch::optim": Program(args.bench, "torch::optim", optimizer, tensors, args.threads),
                     "Python": Python(optimizer, tensors)}
            if optimizer in FUSED:
                peers["Python fused"] = Python(optimizer, tensors, fused=True)
            peers = {name: peer for name, peer in peers.items() if peer.there}
            if "fulmen" not in peers:
                continue
            best, enough = {}, {}
            for name, peer in peers.items():
                # As many steps as fit into the time of fulmen's, at least one.
                once = peer.measure(1)
                budget = STEPS[tensors] * peers["fulmen"].measure(1)
                enough[name] = STEPS[tensors] if name == "fulmen" else max(1, min(STEPS[tensors], int(4 * budget / once)))
            for _ in range(args.rounds):
                for name, peer in peers.items():
                    best[name] = min(best.get(name, float("inf")), peer.measure(enough[name]))
            for peer in peers.values():
                peer.close()
            rows.append({"set": tensors, "optimizer": optimizer, "threads": args.threads, "ns": best})
            ratios = "".join(f"{best[c] / best['fulmen']:13.2f}x" if c in best else f"{'-':>14}" for c in columns)
            print(f"{tensors:12}{optimizer:12}{readable(best['fulmen']):>10}{ratios}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
