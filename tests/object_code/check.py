# Looks into object files for what must have been compiled away. Each check is tried on an object that has it, too.
#
#   check.py unused <hooks.hpp> <object> <control>   no evaluation and no hook in a program that only trains
#   check.py equal <object> <control>                a callback without hooks adds no instruction
#   check.py no_rtti <control> <object>...           no vtable and no type_info of the library's own classes

import os
import re
import subprocess
import sys

NM = os.environ.get("NM", "nm")
OBJDUMP = os.environ.get("OBJDUMP", "objdump")


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def defined_symbols(path):
    lines = output(NM, "--demangle", "--defined-only", path).splitlines()
    return [line.split(maxsplit=2)[2] for line in lines if len(line.split(maxsplit=2)) == 3]


def found(patterns, symbols):
    """The patterns that some symbol matches, each with the first symbol that does."""
    text = "\n".join(symbols)
    return {p: m.group(0) for p in patterns if (m := re.search(f"^.*{p}.*$", text, re.MULTILINE))}


def unused(hooks, path, control):
    with open(hooks) as file:
        names = re.findall(r"^ *HOOK\((\w+), ", file.read(), re.MULTILINE)
    if len(names) < 30:
        sys.exit(f"{hooks}: found only {len(names)} hooks: has the list changed its form?")
    stages = [r"\bEvalMode\b", r"\bNoGradients\b", r"detail::Validation\b", r"detail::Test\b"]
    members = [r"\bValidated::on_validation_end\(", r"\bCounting::on_train_batch_end\("]
    patterns = stages + [r"\bevaluation_pass\b", r"detail::Predict\b", r"\bInferenceOutputs\b"]
    patterns += [rf"::{name}\b" for name in names]

    symbols = defined_symbols(path)
    if not found([r"detail::train_batch\b"], symbols):
        sys.exit(f"{path}: no training in it: is this the right object?")
    missing = set(stages + members) - found(stages + members, defined_symbols(control)).keys()
    if missing:
        sys.exit(f"{control} uses all of it, and yet has nothing like: {sorted(missing)}. This test would miss it.")
    used = found(patterns, symbols)
    if used:
        sys.exit("\n".join([f"{path} has what the program does not use:", *used.values()]))
    print(f"{len(symbols)} symbols, none of {len(patterns)} patterns")


def functions(path):
    """Name -> instructions with their relocations. Each function has a section of its own, so addresses begin at 0."""
    text = output(OBJDUMP, "--disassemble", "--reloc", "--demangle", "--no-show-raw-insn", path)
    result = {}
    for section in text.split("\nDisassembly of section ")[1:]:
        for name, body in re.findall(r"^[0-9a-f]+ <(.*)>:\n((?:.+\n)*)", section, re.MULTILINE):
            # Constructors have two symbols of one demangled name; calls to sections (cold parts) name them mangled.
            result.setdefault(name, []).append(re.sub(r"\.text\.\S+", "<section>", body))
    return result


def of_callback(all_functions, callback):
    """The functions of the loop with this tuple of callbacks, and with the tuple taken out of their names and calls."""
    tuple_name = f"std::tuple<{callback}>"
    neutral = lambda text: text.replace(tuple_name, "std::tuple<callbacks>").replace("std::tuple<>", "std::tuple<callbacks>")
    loop = re.compile(r"(detail::(fit|train_epoch|train_batch|default_training_step)<|TrainerContext<.*>::\w+|Trainer<.*>::(run|fit)<)")
    return {neutral(name): [neutral(body) for body in bodies] for name, bodies in all_functions.items()
            if loop.search(name) and f"fulmen::Identity, {tuple_name}," in name}


def equal(path, control):
    here = functions(path)
    plain = of_callback(here, "")
    if not any("Trainer<" in name for name in plain) or not any("train_batch<" in name for name in plain):
        sys.exit(f"{path}: no training loop among {sorted(plain)}: is this the right object?")
    counting = of_callback(functions(control), "Counting")
    calls = [name for name, bodies in counting.items() if any("Counting::on_train_batch_end" in body for body in bodies)]
    if not calls or any(counting[name] == plain.get(name) for name in calls):
        sys.exit(f"{control}: a callback that answers a hook makes no difference. This test would miss it.")
    for callback in ["Silent", "Validated"]:
        other = of_callback(here, callback)
        if other.keys() != plain.keys():
            sys.exit(f"functions that only one has, {callback} or no callback: {sorted(other.keys() ^ plain.keys())}")
        for name, bodies in plain.items():
            if sorted(other[name]) != sorted(bodies):
                lengths = [sum(body.count("\n") for body in each) for each in (bodies, other[name])]
                sys.exit(f"with {callback}, this function has other instructions ({lengths[0]} lines without, "
                         f"{lengths[1]} with it): {name}")
    lines = sum(body.count("\n") for bodies in plain.values() for body in bodies)
    print(f"{len(plain)} functions, {lines} lines of instructions: the same")


def no_rtti(control, *paths):
    patterns = [r"vtable for fulmen::", r"typeinfo for fulmen::", r"typeinfo name for fulmen::"]
    missing = set(patterns) - found(patterns, defined_symbols(control)).keys()
    if missing:
        sys.exit(f"{control} has a virtual member, and yet nothing like: {sorted(missing)}. This test would miss it.")
    if not paths:
        sys.exit("no objects to check")
    bad = [f"{path}: {symbol}" for path in paths for symbol in found(patterns, defined_symbols(path)).values()]
    if bad:
        sys.exit("\n".join(["The library has run-time type information of its own:", *bad]))
    print(f"{len(paths)} objects: none of {patterns}")


{"unused": unused, "equal": equal, "no_rtti": no_rtti}[sys.argv[1]](*sys.argv[2:])
