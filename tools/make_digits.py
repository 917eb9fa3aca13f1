#!/usr/bin/env python3
"""Writes examples/digits/data: the optical digits that scikit-learn brings along, as two IDX files.

    python tools/make_digits.py [FOLDER]

The result is the same, byte for byte, for every version of scikit-learn that bundles the data set.
"""

import pathlib
import struct
import sys

import numpy as np
from sklearn.datasets import load_digits

UBYTE = 0x08  # IDX's code of an unsigned byte


def write_idx(path, array):
    """Writes an array of bytes: two zeros, the type, the rank, the dimensions (big-endian), the elements."""
    array = np.ascontiguousarray(array, dtype=np.uint8)
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, UBYTE, array.ndim, *array.shape)
    path.write_bytes(header + array.tobytes())
    print(f"{path}: uint8 {list(array.shape)}, {path.stat().st_size} bytes")


def main():
    default = pathlib.Path(__file__).resolve().parent.parent / "examples" / "digits" / "data"
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else default
    digits = load_digits()
    # Stored as float64 there, though every value is a whole number of 0..16: a byte loses nothing.
    assert digits.images.shape == (1797, 8, 8) and digits.target.shape == (1797,)
    assert np.array_equal(digits.images, digits.images.astype(np.uint8)) and digits.images.max() == 16
    folder.mkdir(parents=True, exist_ok=True)
    write_idx(folder / "digits-images-idx3-ubyte", digits.images)
    write_idx(folder / "digits-labels-idx1-ubyte", digits.target)


if __name__ == "__main__":
    main()
