"""Writes the inputs that fuzzing starts from, one folder a program.

    python tests/fuzz/corpus.py <folder>

They are the fixtures of tests/, the pickles inside of them, and a few IDX files.
"""

import gzip
import hashlib
import json
import pathlib
import struct
import sys
import zipfile

FIXTURES = pathlib.Path(__file__).resolve().parent.parent / "fixtures"
LARGEST = 100_000  # larger inputs make a fuzzer slow


def idx(code, shape, data):
    return bytes([0, 0, code, len(shape)]) + b"".join(struct.pack(">I", size) for size in shape) + data


def main():
    folder = pathlib.Path(sys.argv[1])

    def put(program, name, data):
        if len(data) <= LARGEST:
            (folder / program).mkdir(parents=True, exist_ok=True)
            (folder / program / name).write_bytes(data)

    for path in sorted(FIXTURES.rglob("*.pt")) + sorted(FIXTURES.rglob("*.ckpt")) + sorted(FIXTURES.rglob("*.zip")):
        put("archive", path.name, path.read_bytes())
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                pickles = [name for name in archive.namelist() if name.endswith("data.pkl")]
                if pickles and path.name != "nocrc.pt":  # which Python's zip module does not read
                    put("pickle", path.name, archive.read(pickles[0]))
    for path in sorted(FIXTURES.rglob("*.safetensors")):
        put("safetensors", path.name, path.read_bytes())
    for case in json.loads((FIXTURES / "checkpoint" / "safetensors.json").read_text()):
        file = bytes.fromhex(case["file"])
        put("safetensors", hashlib.sha256(file).hexdigest()[:16], file)
    for code, size in ((8, 1), (9, 1), (11, 2), (12, 4), (13, 4), (14, 8)):
        file = idx(code, (2, 3), bytes(range(6 * size)))
        put("idx", f"plain{code}", file)
        put("idx", f"gzip{code}", gzip.compress(file, mtime=0))
    put("idx", "empty", idx(8, (0, 28), b""))
    put("idx", "scalar", idx(8, (), b"\x07"))
    put("idx", "members", gzip.compress(idx(8, (4,), b"ab"), mtime=0) + gzip.compress(b"cd", mtime=0))


if __name__ == "__main__":
    main()
