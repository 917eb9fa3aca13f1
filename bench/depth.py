#!/usr/bin/env python3
"""What a layer of a chain costs to compile, with its composed step: chains of several lengths, against the headers alone.

    cmake --workflow --preset bench
    python bench/depth.py [--tree build/bench] [--rounds 3] [--lengths 5,50]

Compilers, options and include folders are those of the build tree. Each figure is the minimum of interleaved rounds, of processor time.
"""

import argparse
import pathlib
import tempfile

import build

TORCH = "".join(f"#include <torch/nn/modules/{name}.h>\n" for name in (
    "activation", "batchnorm", "conv", "dropout", "embedding", "instancenorm", "linear", "normalization", "pooling", "rnn"))
LAYERS = ["Linear(8, 8)", "ReLU()", "LayerNorm(LayerNormOptions({8}))", "GELU()", "Dropout(0.1)"]
PROGRAM = """#include <fulmen/nn/nn.hpp>
using namespace fulmen::nn;
void train(const at::Tensor& x, const at::Tensor& y) {{
  Sequential net{{{layers}}};
  fulmen::CrossEntropy criterion;
  ComposedStep<decltype(net), fulmen::CrossEntropy> step(net, criterion);
  step.forward({{&x}}, {{&y}});
  step.loss();
  step.backward();
}}
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tree", type=pathlib.Path, default=build.ROOT / "build" / "bench")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lengths", default="5,50", help="numbers of layers, the first the shortest")
    args = parser.parse_args()
    command = [*build.compile_command(args.tree), "-DFULMEN_COMPILED"]
    lengths = [int(n) for n in args.lengths.split(",")]
    folder = pathlib.Path(tempfile.mkdtemp())
    sources = {"LibTorch's headers": TORCH, "and fulmen's": "#include <fulmen/nn/nn.hpp>\n"}
    sources |= {f"{n} layers": PROGRAM.format(layers=", ".join(LAYERS[i % len(LAYERS)] for i in range(n))) for n in lengths}
    seconds = {name: [] for name in sources}
    for number in range(args.rounds):
        for i, (name, text) in enumerate(sources.items()):
            source = folder / f"{i}.cpp"
            source.write_text(text)
            seconds[name].append(build.run([*command, "-c", str(source), "-o", str(folder / "out.o")])[0])
    least = {name: min(found) for name, found in seconds.items()}
    for name, value in least.items():
        print(f"{name:24}{value:8.2f} s")
    torch, first, last = least["LibTorch's headers"], f"{lengths[0]} layers", f"{lengths[-1]} layers"
    print(f"a layer: {1000 * (least[last] - least[first]) / (lengths[-1] - lengths[0]):.0f} ms; "
          f"{last} take {(least[last] - torch) / (least[first] - torch):.2f} times as long as {first}, LibTorch's headers aside")


if __name__ == "__main__":
    main()
