# Tests the examples but digits as a user runs them: what they learn, repeatability, help, errors.
# Called as: examples_test.py FOLDER_OF_THE_PROGRAMS [-k NAME_OF_A_TEST]
import csv
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import unittest

PROGRAMS = pathlib.Path(sys.argv[1]).resolve()


class Example(unittest.TestCase):
    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory()
        self.addCleanup(self.temporary.cleanup)
        self.folder = pathlib.Path(self.temporary.name)

    def run_it(self, name, *arguments):
        """Its output. Nothing of the terminal may come in, so the output of a pipe: plain, 80 columns."""
        begin = time.monotonic()
        result = subprocess.run([PROGRAMS / name, *map(str, arguments)], cwd=self.folder, capture_output=True,
                                encoding="utf-8", timeout=120)
        print(f"{name} {' '.join(map(str, arguments))}: {time.monotonic() - begin:.1f} s", file=sys.stderr)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        self.assertEqual(result.stderr, "")
        return result.stdout

    def numbers(self, pattern, text):
        found = re.search(pattern, text)
        self.assertIsNotNone(found, text)
        return [float(group) for group in found.groups()]

    def last(self, name, version=0):
        with open(self.folder / "runs" / name / f"version_{version}" / "metrics.csv", newline="") as file:
            return list(csv.DictReader(file))[-1]

    def same_seed_same_bits(self, name):
        """Two runs of one epoch with one seed are equal, a third with another is not."""
        files = []
        for seed in (1, 1, 2):
            # In one place one after the other: a checkpoint names the others.
            self.run_it(name, "--epochs", 1, "--seed", seed, "--runs", "same")
            run = self.folder / "same" / name / "version_0"
            files.append([(run / file).read_bytes() for file in ("metrics.csv", "checkpoints/last.ckpt")])
            shutil.rmtree(self.folder / "same")
        self.assertEqual(files[0], files[1])
        self.assertNotEqual(files[0][0], files[2][0])
        self.assertNotEqual(files[0][1], files[2][1])

    def test_gan_finds_all_gaussians(self):
        output = self.run_it("gan", "--seed", 1)
        modes, good = self.numbers(r"(\d+) of 8 Gaussians found, (\d+) % of the points", output)
        self.assertGreaterEqual(modes, 7)
        self.assertGreaterEqual(good, 75)
        self.assertEqual(float(self.last("gan")["modes"]), modes)
        self.assertEqual(output.count("|\n"), 26, "the plot's lines")
        self.same_seed_same_bits("gan")

    def test_autoencoder_beats_principal_components(self):
        output = self.run_it("autoencoder", "--seed", 1)
        error, pca = self.numbers(r"error of a pixel: ([\d.]+); with 8 principal components: ([\d.]+)", output)
        self.assertLess(error, 0.7 * pca)
        self.assertAlmostEqual(float(self.last("autoencoder")["test/mse"]), error, places=4)
        self.assertAlmostEqual(pca, 0.024, places=3, msg="the data is fixed, so is this")
        self.same_seed_same_bits("autoencoder")

    def test_reinforce_balances_the_pole(self):
        output = self.run_it("reinforce", "--seed", 1)
        before, after, updates = self.numbers(r"([\d.]+) steps before, ([\d.]+) after (\d+) updates", output)
        self.assertLess(before, 100)
        self.assertGreater(after, 300)
        self.assertLess(updates, 5 * 40, "it stops when it has learnt enough")
        self.same_seed_same_bits("reinforce")

    def test_seq2seq_writes_dates(self):
        output = self.run_it("seq2seq", "--seed", 1, "Friday, 3 July 1987", "11/30/2041")
        exact, = self.numbers(r"([\d.]+) % of 500 dates", output)
        self.assertGreater(exact, 90)
        self.assertAlmostEqual(100 * float(self.last("seq2seq")["test/exact"]), exact, places=1)
        self.assertEqual(output.count("→"), 10)
        self.assertRegex(output, r"Friday, 3 July 1987 +→ \d{4}-\d\d-\d\d\n")
        self.same_seed_same_bits("seq2seq")

    def test_help_and_errors(self):
        for name in "gan", "autoencoder", "reinforce", "seq2seq":
            with self.subTest(name):
                output = self.run_it(name, "--help")
                for option in "--epochs", "--seed", "--runs", "--help":
                    self.assertIn(option, output)
                for arguments, expected in ((["--epoch", "3"], "--epoch"), (["--epochs", "-3"], "--epochs"),
                                            (["--seed", "many"], "--seed")):
                    self.error(name, arguments, expected)
                (self.folder / "file").write_text("")
                self.error(name, ["--epochs", "1", "--runs", "file"], "cannot make a run folder in 'file")
        self.error("seq2seq", ["1.1.2000", "9 May 1995, which was a Tuesday"], "9 May 1995, which was a Tuesday")
        self.assertEqual(os.listdir(self.folder), ["file"], "none of these wrote anything")

    def error(self, name, arguments, expected):
        result = subprocess.run([PROGRAMS / name, *arguments], cwd=self.folder, capture_output=True, encoding="utf-8",
                                timeout=120)
        self.assertNotEqual(result.returncode, 0)
        self.assertIn(expected, result.stdout + result.stderr)
        self.assertLessEqual(len(result.stderr.strip().splitlines()), 3, result.stderr)


unittest.main(argv=[sys.argv[0], *sys.argv[2:]], verbosity=2)
