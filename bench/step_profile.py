#!/usr/bin/env python3
"""Where a training step's instructions go, counted by callgrind: kernels, dispatcher, autograd, memory, optimizer, loop.

    cmake --workflow --preset bench
    python bench/step_profile.py [--bench build/bench/bench/step_bench] [--models micro,mlp] [--peers plain,expert,fulmen]

Needs valgrind. The counts are those of the functions themselves, of a step: an epoch of twice as many steps less one of as
many. They are repeatable, but no times: a division counts as much as an addition.
"""

import argparse
import pathlib
import re
import subprocess
import sys

import callgrind

# The first that matches a function's name decides.
PARTS = [
    ("kernels", r"fulmen::nn::(kernels::)?detail::(cascade_sum|sum_rows_of|relu_of|relu_backward_of|softmax_loop|.*[Ll]oop)"),
    ("rules of the layers", r"fulmen::nn::"),
    ("loop", r"fulmen::(?!detail::BoundElementwise|simd::|Adam|SGD)"),
    ("optimizer", r"fulmen::detail::BoundElementwise|fulmen::(simd::|Adam|SGD)|fused_adam|torch::optim"),
    ("memory", r"malloc|calloc|\bfree\b|_int_|memalign|operator (new|delete)|alloc_cpu|free_cpu|CPUAllocator|sysmalloc|unlink_chunk"),
    ("thread-local storage", r"__tls_get_addr|tls_get|TLS init|ThreadLocalState|_dl_update_slotinfo"),
    ("kernels", r"mkl_|dnnl|gemm|gemv|DEFAULT::|AVX2::|AVX512::|vectorized|at::vec|cpublas|cpu_kernel|sum_kernel|softmax|nll_loss_(forward|backward)_out_frame|memset|memcpy|memmove|exp_|log_|expf|logf"),
    ("autograd", r"torch::autograd|AutogradMeta|autograd::|SavedVariable|GraphTask|ADInplaceOrView|VariableType"),
    ("TensorIterator", r"TensorIterator|DimVector|infer_size|compute_(strides|shape|types)|coalesce_dimensions"),
    ("dispatcher", r"at::_ops::|c10::impl::|Dispatcher|DispatchKey|KernelFunction|OperatorHandle|OperatorEntry|wrapper_CPU|LocalDispatchKeySet|GuardImpl"),
    ("operators", r"at::native|at::meta|at::cpu|at::structured|at::Tensor|at::\(anonymous"),
    ("tensors", r"TensorImpl|intrusive_ptr|Storage|SymInt|SmallVector|SizesAndStrides|IntArrayRef|c10::|at::"),
]


def profile(program, peer, model):
    """Part to instructions a step."""
    with callgrind.counted(program, peer, model, 1, "count") as runs:
        once, twice = runs["steps"][-2:]
        less, more = by_part(once.profile), by_part(twice.profile)
        return {part: (more.get(part, 0) - less.get(part, 0)) / (twice.number - once.number) for part in more}


def by_part(path):
    text = subprocess.run(["callgrind_annotate", "--threshold=100", "--inclusive=no", "--auto=no", str(path)],
                          capture_output=True, text=True).stdout
    found = {}
    for line in text.splitlines():
        match = re.match(r"\s*([\d,]+) \([^)]*\)\s+(.*)$", line)
        if not match or "PROGRAM TOTALS" in line:
            continue
        name = match.group(2).split(":", 1)[-1]
        part = next((part for part, pattern in PARTS if re.search(pattern, name)), "other")
        found[part] = found.get(part, 0) + int(match.group(1).replace(",", ""))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bench", default="build/bench/bench/step_bench", help="the program step_bench")
    parser.add_argument("--models", default="micro,mlp")
    parser.add_argument("--peers", default="plain,expert,fulmen,composed,hand")
    args = parser.parse_args()
    if not pathlib.Path(args.bench).exists():
        sys.exit(f"{args.bench} does not exist: build it with cmake --workflow --preset bench, or name it with --bench")
    for model in args.models.split(","):
        peers = args.peers.split(",")
        columns = {peer: profile(args.bench, peer, model) for peer in peers}
        print(f"{model}: instructions a step, in thousands\n{'':24}" + "".join(f"{peer:>16}" for peer in peers))
        parts = list(dict.fromkeys([part for part, _ in PARTS] + ["other"]))
        for part in sorted(parts, key=lambda part: -columns[peers[0]].get(part, 0)):
            cells = [columns[peer].get(part, 0) for peer in peers]
            print(f"{part:24}" + "".join(f"{cell / 1000:8.1f} {100 * cell / sum(columns[peer].values()):5.1f} %" for peer, cell in zip(peers, cells)))
        print(f"{'all':24}" + "".join(f"{sum(columns[peer].values()) / 1000:8.1f}{'':8}" for peer in peers), flush=True)


if __name__ == "__main__":
    main()
