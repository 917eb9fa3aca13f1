# That a Sequential is the calls written by hand: seen in an object file of chain.cpp.
#
#   chain_check.py <object>
#
# From run_chain and run_nested, and all of fulmen's that they call, the layers' own forward functions are called
# directly, as in run_hand, and nothing of AnyModule is. Through pointers goes only what goes so in run_hand: LibTorch's
# own release of a tensor. run_boxed is the control: torch::nn::Sequential must be found to do otherwise.

import os
import re
import subprocess
import sys

OBJDUMP = os.environ.get("OBJDUMP", "objdump")


def functions(path):
    text = subprocess.run([OBJDUMP, "--disassemble", "--reloc", "--demangle", "--no-show-raw-insn", path],
                          check=True, capture_output=True, text=True).stdout
    return dict(re.findall(r"^[0-9a-f]+ <(.*)>:\n((?:.+\n)*)", text, re.MULTILINE))


def calls(all_functions, name, inside, seen):
    """(targets called by name, the number of calls through pointers) of a function and of those in `inside` that it calls."""
    body = all_functions[name]
    seen.add(name)
    named = re.findall(r"R_X86_64_PL(?:T)?32\t(.*?)-0x", body) + re.findall(r"R_AARCH64_(?:CALL|JUMP)26\t(.*)", body)
    pointers = len(re.findall(r"\bcall +\*|\bjmp +\*|\bblr\b|\bbr\b", body))
    result = []
    for target in named:
        if target in all_functions and re.search(inside, target) and target not in seen:
            more, count = calls(all_functions, target, inside, seen)
            result += more
            pointers += count
        else:
            result.append(target)
    return result, pointers


def main(path):
    everything = functions(path)
    found = {}
    for name in everything:
        if (match := re.match(r"run_(\w+)\(", name)) and "[clone" not in name:  # that is where exceptions are thrown
            found[match.group(1)] = calls(everything, name, r"fulmen::nn::|AnyModule|AnyValue|SequentialImpl", set())
    if found.keys() != {"chain", "nested", "hand", "boxed"}:
        sys.exit(f"{path}: found only {sorted(found)}: is this the right object?")
    layers = {name: sorted(t for t in named if re.search(r"Impl::forward\(", t)) for name, (named, _) in found.items()}
    if len(layers["hand"]) != 3:
        sys.exit(f"{path}: by hand, the layers called are {layers['hand']}, expected three: this test would miss others")
    if layers["boxed"] == layers["hand"] or not any("AnyModule" in t or "AnyValue" in t for t in found["boxed"][0]):
        sys.exit(f"{path}: torch::nn::Sequential calls {found['boxed']}, nothing of AnyModule: this test would miss it")
    for name in ("chain", "nested"):
        named, pointers = found[name]
        if layers[name] != layers["hand"]:
            sys.exit(f"{path}: run_{name} calls the layers {layers[name]}, expected {layers['hand']}")
        if boxed := [t for t in named if "AnyModule" in t or "AnyValue" in t]:
            sys.exit(f"{path}: run_{name} calls {boxed}")
        if pointers > found["hand"][1]:
            sys.exit(f"{path}: run_{name} has {pointers} calls through pointers, expected those of run_hand: {found['hand'][1]}")
    print({name: f"{len(named)} calls, {pointers} through pointers" for name, (named, pointers) in found.items()})


main(sys.argv[1])
