# Compiles headers alone, and says how long each takes.
#
#   check.py compile <compile_commands.json> <source> <header> <seconds file>
#   check.py table <times file> <seconds file>...
#
# The source includes nothing but the header. Seconds are the compiler's CPU time: other jobs disturb it little.

import json
import pathlib
import resource
import shlex
import subprocess
import sys


def compile_alone(commands, source, header, seconds_file):
    with open(commands) as file:
        entry = next((e for e in json.load(file) if e["file"] == source), None)
    if entry is None:
        sys.exit(f"{commands} has no command for {source}")
    command = shlex.split(entry["command"])
    at = command.index("-o")
    del command[at:at + 2]
    result = subprocess.run([*command, "-fsyntax-only"], cwd=entry["directory"])
    if result.returncode != 0:
        sys.exit(f"<{header}> does not compile alone")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    pathlib.Path(seconds_file).write_text(f"{used.ru_utime + used.ru_stime:7.2f}  {header}\n")


def table(times_file, *seconds_files):
    # A header whose test did not run this time shows the seconds of its last run, or nothing.
    rows = sorted((p.read_text() for p in map(pathlib.Path, seconds_files) if p.exists()), reverse=True)
    if not rows:
        sys.exit("no header was compiled")
    text = "seconds  header\n" + "".join(rows)
    pathlib.Path(times_file).write_text(text)
    print(text, end="")


{"compile": compile_alone, "table": table}[sys.argv[1]](*sys.argv[2:])
