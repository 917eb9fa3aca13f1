# Tests that docs/hooks.md is what the program prints. Called as: hooks_test.py PROGRAM PAGE.
import pathlib
import subprocess
import sys

program, page = sys.argv[1:]
made = subprocess.run([program], check=True, capture_output=True).stdout
here = pathlib.Path(page).read_bytes() if pathlib.Path(page).exists() else b""
if made != here:
    sys.exit(f"{page} is not what the list of hooks says. Make it anew:\n  {program} > {page}")
print(f"{page}: {made.count(b'| `')} rows, as the list says")
