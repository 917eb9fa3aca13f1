"""Instructions counted by valgrind's callgrind, in programs that use bench/callgrind.hpp."""

import collections
import contextlib
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

Run = collections.namedtuple("Run", "number instructions profile")


@contextlib.contextmanager
def counted(*command):
    """Runs a program, whose profiles live until the `with` ends.

    @return name to its runs: to warm up, once, and with twice the number
    """
    valgrind = shutil.which("valgrind")
    if not valgrind:
        sys.exit("counting instructions needs valgrind. On Debian or Ubuntu: apt install valgrind")
    with tempfile.TemporaryDirectory() as folder:
        command = [valgrind, "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={folder}/out", *map(str, command)]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode != 0:
            sys.exit(f"{' '.join(command)} failed:\n{run.stderr[-2000:]}")
        runs = collections.defaultdict(list)
        for profile in sorted(pathlib.Path(folder).glob("out.*"), key=lambda path: int(path.suffix[1:])):
            text = profile.read_text(errors="replace")
            label = re.search(r"^desc: Trigger: Client Request: (.*),(\d+)\s*$", text, re.MULTILINE)
            total = re.search(r"^totals: (\d+)$", text, re.MULTILINE)
            if label and total:
                runs[label.group(1)].append(Run(int(label.group(2)), int(total.group(1)), profile))
        if not runs:
            sys.exit(f"{command[4]} was built without valgrind's headers: install them and build it again")
        yield runs


def of_one(runs):
    """Instructions of one thing, without what is around them."""
    once, twice = runs[-2:]
    return (twice.instructions - once.instructions) / (twice.number - once.number)
