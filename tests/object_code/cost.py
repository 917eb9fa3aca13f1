# Tests what callbacks cost a training batch, in instructions that Valgrind counts: those that have no hook of a batch cost
# nothing, one that has costs its call. Called as: cost.py VALGRIND PROGRAM; says "skipped" (77) where there is none.

import pathlib
import re
import subprocess
import sys
import tempfile

BATCHES = 1000
valgrind, program = sys.argv[1:]
if not pathlib.Path(valgrind).exists():
    print("skipped: valgrind is not installed")
    sys.exit(77)

with tempfile.TemporaryDirectory() as folder:
    command = [valgrind, "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={folder}/out", program, str(BATCHES)]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode != 0:
        sys.exit(f"valgrind failed:\n{run.stderr[-2000:]}")
    counts = {}
    for path in pathlib.Path(folder).glob("out.*"):
        text = path.read_text(errors="replace")
        label = re.search(r"^desc: Trigger: Client Request: (.*), (warm-up|once|twice)$", text, re.MULTILINE)
        total = re.search(r"^totals: (\d+)$", text, re.MULTILINE)
        if label and total:
            counts[label.groups()] = int(total.group(1))
if not counts:
    print("skipped: the program was built without valgrind/callgrind.h")
    sys.exit(77)

none, sixteen, one = [(counts[name, "twice"] - counts[name, "once"]) / BATCHES for name in ("none", "sixteen", "one of sixteen")]
print(f"instructions a batch: {none} without callbacks, {sixteen} with sixteen that have no hook of a batch, {one} where one has")
if none < 20:
    sys.exit("too few for a loop: has the compiler taken it away?")
# Other code around the loop may move a value to another register; a call, a test or a walk over the callbacks would be more.
if abs(sixteen - none) > 2:
    sys.exit("sixteen callbacks without a hook of a batch cost something in each batch")
if not none < one <= none + 4:
    sys.exit("one callback with a hook that increments a number costs more than that, or nothing")
