# Tests that code shown in the docs is compiled: each C++ block of README.md and docs/*.md stands in a source that is built.
# Called as: docs_test.py PROJECT_DIR.
import pathlib
import re
import sys

project = pathlib.Path(sys.argv[1]).resolve()


def squeezed(text):
    return "\n".join(line.strip() for line in text.splitlines() if line.strip())


sources = {path: squeezed(path.read_text()) for folder in ("examples", "tests/docs", "tests/consumer")
           for path in sorted((project / folder).rglob("*.cpp"))}
cmake = {path: squeezed(path.read_text()) for path in sorted((project / "tests/consumer").rglob("CMakeLists.txt"))}

failures = blocks = 0
for page in [project / "README.md", *sorted((project / "docs").glob("*.md"))]:
    for language, block in re.findall(r"```(cpp|cmake)\n(.*?)```", page.read_text(), re.S):
        blocks += 1
        known = sources if language == "cpp" else cmake
        if not any(squeezed(block) in text for text in known.values()):
            failures += 1
            print(f"{page.relative_to(project)}: this block is in no source that is built:\n{block}")
print(f"{blocks} blocks, {failures} not found")
sys.exit(1 if failures or not blocks else 0)
