# The rules that grep can check, over the sources of a repository:
#
#   - in include/, outside comments and strings: no virtual, dynamic_cast, std::function, std::any
#   - in include/: bodies for the library (#if FULMEN_BODIES) only in headers that cmake/compiled.cpp brings in
#   - every source in FOLDERS opens with a line of comment on what it is for
#
#   check.py <repository>

import pathlib
import re
import sys

FORBIDDEN = {
    "virtual": r"\bvirtual\b",
    "dynamic_cast": r"\bdynamic_cast\b",
    "std::function": r"\bstd\s*::\s*(move_only_|copyable_)?function\b",
    "std::any": r"\bstd\s*::\s*any(_cast)?\b",
}
FOLDERS = ["include", "tests", "examples", "bench", "cmake", "tools"]
COMMENT = {".hpp": "//", ".cpp": "//", ".cu": "//", ".py": "#", ".sh": "#", ".cmake": "#", ".in": "#"}

# Comments and literals in one expression, so that neither is mistaken for the other.
SKIPPED = re.compile(
    r'''//[^\n]*|/\*.*?\*/|R"(?P<tag>[^()\s\\]{0,16})\(.*?\)(?P=tag)"|'''
    r'''"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])+\'''', re.DOTALL)


def code_of(text):
    """The text with comments and literals blanked; line numbers stay."""
    # Digit separators are no character literals.
    text = re.sub(r"(?<=[0-9a-fA-F])'(?=[0-9a-fA-F])", "_", text)
    return SKIPPED.sub(lambda m: "\n" * m.group(0).count("\n") or " ", text)


def forbidden(path):
    for number, line in enumerate(code_of(path.read_text()).splitlines(), start=1):
        for what, pattern in FORBIDDEN.items():
            if re.search(pattern, line):
                yield f"{path}:{number}: {what}"


def opening(path):
    mark = "#" if path.name == "CMakeLists.txt" else COMMENT.get(path.suffix)
    if mark is None:
        return
    lines = path.read_text().splitlines()
    if lines and lines[0].startswith("#!"):
        del lines[0]
    docstring = path.suffix == ".py" and lines and re.match(r'"""\S', lines[0])
    if not docstring and not (lines and re.match(rf"{mark}+ ?\S", lines[0])):
        yield f"{path}:1: expected a comment on what this file is for"


def not_in_library(root):
    """Headers with bodies that the library's source does not include, however indirectly."""
    seen, open_files = set(), [root / "cmake" / "compiled.cpp"]
    while open_files:
        path = open_files.pop()
        if path in seen or not path.exists():
            continue
        seen.add(path)
        open_files += [root / "include" / name for name in re.findall(r'^ *# *include [<"](fulmen/[^">]+)', path.read_text(), re.MULTILINE)]
    for path in sorted((root / "include").rglob("*.hpp")):
        if path not in seen and re.search(r"^ *# *if FULMEN_BODIES", path.read_text(), re.MULTILINE):
            yield f"{path}: it has bodies for the library, but cmake/compiled.cpp does not bring it in"


def check(root):
    errors, counted = [], 0
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            if not path.is_file() or "__pycache__" in path.parts:
                continue
            counted += 1
            errors += opening(path)
            if folder == "include":
                errors += forbidden(path)
    errors += not_in_library(root)
    return errors, counted


if __name__ == "__main__":
    errors, counted = check(pathlib.Path(sys.argv[1]))
    if counted == 0:
        sys.exit(f"{sys.argv[1]}: no sources")
    if errors:
        sys.exit("\n".join(errors))
    print(f"{counted} files keep the rules")
