# Tests what callbacks cost a training batch, in instructions that Valgrind counts: those that have no hook of a batch cost
# nothing, one that has costs its call. And that an epoch costs what it did, with the compilers for which that is written down.
# Called as: cost.py PROGRAM COMPILER; says "skipped" (77) where there is no valgrind.

import pathlib
import shutil
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent.parent / "bench"))
import callgrind

BATCHES = 1000
# Instructions of fit with one epoch of so many batches without callbacks, at -O2, and how far off it may be: what is inlined
# depends on the code around, but a call more a batch is a fifth. Some 10,000 of them are of fit and the epoch as a whole.
EPOCH = {"GNU-12": 26_700}
TOLERANCE = 0.08
program, compiler = sys.argv[1:]
if not shutil.which("valgrind"):
    print("skipped: valgrind is not installed")
    sys.exit(77)

with callgrind.counted(program, BATCHES) as counts:
    none, sixteen, one = [callgrind.of_one(counts[name]) for name in ("none", "sixteen", "one of sixteen")]
    epoch = counts["none"][1].instructions
print(f"instructions a batch: {none} without callbacks, {sixteen} with sixteen that have no hook of a batch, {one} where one has")
if none < 8:
    sys.exit("too few for a loop: has the compiler taken it away?")
# Other code around the loop may move a value to another register; a call, a test or a walk over the callbacks would be more.
if abs(sixteen - none) > 2:
    sys.exit("sixteen callbacks without a hook of a batch cost something in each batch")
if not none < one <= none + 4:
    sys.exit("one callback with a hook that increments a number costs more than that, or nothing")
expected = EPOCH.get(compiler)
print(f"an epoch of {BATCHES} batches: {epoch} instructions, with {compiler}; expected: {expected or 'not known'}")
if expected and abs(epoch - expected) > TOLERANCE * expected:
    sys.exit("more than before: look where they are (bench/dispatch.py, callgrind_annotate)" if epoch > expected else
             "less than before: write the new number into this test")
