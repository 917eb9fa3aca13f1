# That check.py sees what it looks for, and takes neither comments nor literals for code.

import pathlib
import tempfile
import unittest

import check


class Rules(unittest.TestCase):
    def errors(self, text, name="include/a.hpp"):
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            return [error.removeprefix(f"{root}/") for error in check.check(root)[0]]

    def test_forbidden(self):
        for code in ["virtual void f();", "auto p = dynamic_cast<B*>(a);", "std::function<void()> f;",
                     "std :: any x;", "f(std::any_cast<int>(x));", 'char c = \'"\'; virtual void f(); char d = \'"\';',
                     "int n = 1'000; virtual void f(); int m = 1'000;"]:
            self.assertEqual(len(self.errors(f"// A file.\n{code}\n")), 1, code)
        self.assertIn("include/a.hpp:3: virtual", self.errors("// A file.\n/* two\n lines */ virtual f();\n"))

    def test_allowed(self):
        for code in ["// virtual", "/* std::any\n virtual */", 'auto s = "virtual \\" virtual";',
                     "int virtually;", 'auto s = R"(virtual " dynamic_cast)";', "std::anything x;", "#include <functional>"]:
            self.assertEqual(self.errors(f"// A file.\n{code}\n"), [], code)

    def test_elsewhere(self):
        self.assertEqual(self.errors("// A test.\nvirtual void f();\n", "tests/a.cpp"), [])

    def test_bodies(self):
        text = "// A header.\n#if FULMEN_BODIES\n#endif\n"
        for included, errors in [("a", 0), ("b", 1)]:
            with tempfile.TemporaryDirectory() as folder:
                root = pathlib.Path(folder)
                for path, content in [("include/fulmen/a.hpp", text), ("include/fulmen/b.hpp", "// B.\n"),
                                      ("cmake/compiled.cpp", f"// The library.\n#include <fulmen/{included}.hpp>\n")]:
                    (root / path).parent.mkdir(parents=True, exist_ok=True)
                    (root / path).write_text(content)
                self.assertEqual(len(check.check(root)[0]), errors)

    def test_opening(self):
        self.assertEqual(self.errors("#pragma once\n"),
                         ["include/a.hpp:1: expected a comment on what this file is for"])
        self.assertEqual(len(self.errors("", "cmake/a.cmake")), 1)
        self.assertEqual(len(self.errors("\n# Late.\n", "tests/CMakeLists.txt")), 1)
        self.assertEqual(len(self.errors("#!/usr/bin/env python3\nimport sys\n", "tools/a.py")), 1)
        self.assertEqual(self.errors("#!/usr/bin/env python3\n# A tool.\n", "tools/a.py"), [])
        self.assertEqual(self.errors('"""A tool."""\n', "tools/a.py"), [])
        self.assertEqual(self.errors("1 2 3\n", "tests/fixtures/a.txt"), [])


if __name__ == "__main__":
    unittest.main()
