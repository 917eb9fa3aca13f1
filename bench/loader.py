#!/usr/bin/env python3
"""Counts the images a second of loaders over 60,000 images in memory: fulmen's, torch::data's and Python's, in turn.

    cmake --workflow --preset bench
    python bench/loader.py [--bench build/bench/bench/loader_bench] [--threads 1,2] [--batch 64,1024] [--json FILE]

Images are 1x28x28, shuffled; uint8 images become floats in [0, 1] on the way. The Python that runs this must have torch;
without it, Python's rows are missing. Each figure is the best of several rounds; in a round all peers are measured one after
another, so that what else the machine does hits all of them. --overlap measures what prefetching saves with steps of a given
length.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time

try:
    import torch
    from torch.utils.data import BatchSampler, DataLoader, RandomSampler
except ImportError:
    torch = None

IMAGES = 60_000
PROGRAMS = {
    "fulmen": "TensorLoader",
    "fulmen prefetch": "the same, in a background thread",
    "torch::data": "Dataset::get and Stack",
    "torch::data 2": "the same, 2 workers",
    "torch::data batches": "BatchDataset with index_select",
    "torch::data batches 2": "the same, 2 workers",
}
PYTHONS = {
    "Python": "DataLoader, a sample at a time",
    "Python 2": "the same, 2 workers",
    "Python batches": "DataLoader with a BatchSampler as sampler",
    "Python batches 2": "the same, 2 workers",
}


class Program:
    """loader_bench as a peer."""

    def __init__(self, program, peer, *arguments):
        self.process = subprocess.Popen([program, peer, *map(str, arguments)], text=True, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE)
        if self.process.stdout.readline() != "ready\n":
            sys.exit(f"{program} '{peer}' failed")

    def measure(self, epochs=1):
        self.process.stdin.write(f"{epochs}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self):
        self.process.kill()  # Python's workers hold its input open, too: it would not see an end
        self.process.wait()


class Images:
    """What torch.utils.data.TensorDataset is, and bytes made floats. An index may be a list: then it gives a batch."""

    def __init__(self, kind):
        self.image, self.label = torch.rand(IMAGES, 1, 28, 28), torch.randint(10, (IMAGES,))
        if kind == "uint8":
            self.image = (self.image * 255).to(torch.uint8)

    def __len__(self):
        return IMAGES

    def __getitem__(self, index):
        image = self.image[index]
        return (image.float().div_(255) if image.dtype == torch.uint8 else image), self.label[index]


class Python:
    """torch.utils.data.DataLoader as a peer."""

    def __init__(self, peer, kind, batch):
        data, workers = Images(kind), 2 if peer.endswith(" 2") else 0
        keep = {"persistent_workers": True} if workers else {}
        if "batches" in peer:
            sampler = BatchSampler(RandomSampler(data), batch_size=batch, drop_last=False)
            self.loader = DataLoader(data, sampler=sampler, batch_size=None, num_workers=workers, **keep)
        else:
            self.loader = DataLoader(data, batch_size=batch, shuffle=True, num_workers=workers, **keep)
        self.batches = (IMAGES + batch - 1) // batch
        self.measure()

    def measure(self):
        begin = time.perf_counter()
        if sum(1 for _ in self.loader) != self.batches:
            sys.exit("a DataLoader lost batches")
        return time.perf_counter() - begin

    def close(self):
        self.loader = None


def best_of(peers, rounds):
    best = {}
    for _ in range(rounds):
        for name, peer in peers.items():
            best[name] = min(best.get(name, float("inf")), peer.measure())
    for peer in peers.values():
        peer.close()
    return best


def overlap(args):
    rows = []
    # Short epochs and many rounds, since two threads are slow whenever a core has other work.
    print(f"{'loader':>8}{'step':>8}{'alone':>10}{'prefetch':>10}  µs a batch")
    for loader, step in ((10, 200), (100, 200), (200, 200), (200, 100), (10, 20), (2, 200)):
        peers = {peer: Program(args.bench, peer, loader, step, 1) for peer in ("step", "step prefetch")}
        us = {peer: seconds * 1e4 for peer, seconds in best_of(peers, 10 * args.rounds).items()}  # of 100 batches
        rows.append({"loader_us": loader, "step_us": step, "us": us})
        print(f"{loader:8}{step:8}{us['step']:10.1f}{us['step prefetch']:10.1f}", flush=True)
    return rows


def epochs(args):
    rows = []
    for threads in map(int, args.threads.split(",")):
        if torch:
            torch.set_num_threads(threads)
        for kind in ("float", "uint8"):
            for batch in map(int, args.batch.split(",")):
                print(f"\n{threads} thread(s), {kind}, batches of {batch}: million images a second", flush=True)
                peers = {peer: Program(args.bench, peer, kind, batch, threads) for peer in PROGRAMS}
                if torch and not args.no_python:
                    peers |= {peer: Python(peer, kind, batch) for peer in PYTHONS}
                best = best_of(peers, args.rounds)
                for peer, seconds in best.items():
                    ratio = seconds / best["fulmen"]
                    note = (PROGRAMS | PYTHONS)[peer]
                    print(f"  {peer:22}{IMAGES / seconds / 1e6:8.3f}   fulmen: {ratio:6.2f}x   {note}", flush=True)
                rows.append({"threads": threads, "kind": kind, "batch": batch, "seconds": best})
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bench", default="build/bench/bench/loader_bench", help="the program loader_bench")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--batch", default="64,1024")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--overlap", action="store_true", help="loaders and steps of given lengths, with and without")
    parser.add_argument("--no-python", action="store_true")
    parser.add_argument("--json", type=pathlib.Path, help="writes the figures (seconds an epoch) to this file too")
    args = parser.parse_args()
    if not pathlib.Path(args.bench).exists():
        sys.exit(f"{args.bench} does not exist: build it with cmake --workflow --preset bench, or name it with --bench")
    rows = overlap(args) if args.overlap else epochs(args)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
