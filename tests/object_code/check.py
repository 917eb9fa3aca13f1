# Looks into object files for what must have been compiled away. Each check is tried on one that has it, too.
#
#   check.py unused <hooks.hpp> <object> <control>   no evaluation and no hook in a program that only trains
#   check.py equal <object> <silent> <validated> <control>   a callback without hooks adds no instruction
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
    # The header of the SimpleProfiler is there: its own functions, which are no templates, may be.
    measured = [r"detail::action<", r"\bActionScope\b"]
    patterns = stages + measured + [r"\bevaluation_pass\b", r"detail::Predict\b", r"\bInferenceOutputs\b",
                                    r"detail::measure<", r"\bMeasuredIterator\b"]
    # The default training step, which it does use, has the hook's name among its template arguments.
    patterns += [rf"::{name}\b" for name in names if name != "training_step"]

    symbols = defined_symbols(path)
    if not found([r"detail::train_batch\b"], symbols):
        sys.exit(f"{path}: no training in it: is this the right object?")
    missing = set(stages + members + measured) - found(stages + members + measured, defined_symbols(control)).keys()
    if missing:
        sys.exit(f"{control} uses all of it, and yet has nothing like {sorted(missing)}: this test would miss it")
    used = found(patterns, symbols)
    if used:
        sys.exit("\n".join([f"{path} has what the program does not use:", *used.values()]))
    print(f"{len(symbols)} symbols, none of {len(patterns)} patterns")


def functions(path):
    """Name -> instructions and relocations. Each function has a section of its own, so addresses begin at 0."""
    text = output(OBJDUMP, "--disassemble", "--reloc", "--demangle", "--no-show-raw-insn", path)
    result = {}
    for section in text.split("\nDisassembly of section ")[1:]:
        for name, body in re.findall(r"^[0-9a-f]+ <(.*)>:\n((?:.+\n)*)", section, re.MULTILINE):
            # Calls to sections (cold parts) name them mangled; constants are numbered through the file.
            body = re.sub(r"\.text\.\S+", "<section>", body)
            body = re.sub(r"\.L[A-Za-z.]*[0-9_]+", "<constant>", body)
            result.setdefault(name, []).append(body)  # constructors have two symbols of one demangled name
    return result


def of_callback(all_functions, callback):
    """The functions of the Trainer with this callback, which is taken out of their names and calls."""
    tuple_name = f"std::tuple<{callback}>"
    any_tuple = "std::tuple<callbacks>"

    def neutral(text):
        return text.replace(tuple_name, any_tuple).replace("std::tuple<>", any_tuple)

    # Constructors and destructors see the tuple itself.
    special = re.compile(r">::~?Trainer(Context)?\(|>::Trainer<")
    return {neutral(name): [neutral(body) for body in bodies] for name, bodies in all_functions.items()
            if f"fulmen::Identity, {tuple_name}," in name and re.search(r"\bTrainer(Context)?<", name)
            and not special.search(name)}


def equal(path, silent, validated, control):
    plain = of_callback(functions(path), "")
    if not all(any(function in name for name in plain) for function in ("train_epoch<", "train_batch<")):
        sys.exit(f"{path}: no training loop among {sorted(plain)}: is this the right object?")
    counting = of_callback(functions(control), "Counting")
    calls = [name for name, bodies in counting.items() if "Counting::on_train_batch_end" in "".join(bodies)]
    if not calls or any(counting[name] == plain.get(name) for name in calls):
        sys.exit(f"{control}: a callback that answers a hook makes no difference. This test would miss it.")
    for callback, other_path in ("Silent", silent), ("Validated", validated):
        other = of_callback(functions(other_path), callback)
        if different := sorted(other.keys() ^ plain.keys()):
            sys.exit(f"functions that only one has, {callback} or no callback: {different}")
        for name, bodies in plain.items():
            if sorted(other[name]) != sorted(bodies):
                lengths = [sum(body.count("\n") for body in each) for each in (bodies, other[name])]
                sys.exit(f"with {callback}, this function has other instructions: {lengths[0]} lines without it, "
                         f"{lengths[1]} with it: {name}")
    lines = sum(body.count("\n") for bodies in plain.values() for body in bodies)
    print(f"{len(plain)} functions, {lines} lines of instructions: the same")


def no_rtti(control, *paths):
    # The library has no unnamed namespaces: what is in one is a test's own.
    # The layers of fulmen::nn are torch::nn::Modules, whose class is virtual.
    own = r"fulmen::(?!nn::[A-Z]|nn::detail::Combinator<)(?!(\w+::)*\(anonymous namespace\))"
    patterns = [f"vtable for {own}", f"typeinfo for {own}", f"typeinfo name for {own}"]
    missing = set(patterns) - found(patterns, defined_symbols(control)).keys()
    if missing:
        sys.exit(f"{control} has a virtual member, and nothing like {sorted(missing)}: this test would miss it")
    if not paths:
        sys.exit("no objects to check")
    bad = [f"{path}: {name}" for path in paths for name in found(patterns, defined_symbols(path)).values()]
    if bad:
        sys.exit("\n".join(["The library has run-time type information of its own:", *bad]))
    print(f"{len(paths)} objects: no vtable, no type_info")


{"unused": unused, "equal": equal, "no_rtti": no_rtti}[sys.argv[1]](*sys.argv[2:])
