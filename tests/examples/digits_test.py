# Tests the digits example as a user runs it: accuracy, repeatability, files, errors, Ctrl-C. Called as: digits_test.py PROGRAM DATA.
import csv
import gzip
import os
import pathlib
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest

PROGRAM, DATA = (pathlib.Path(argument).resolve() for argument in sys.argv[1:3])


def run(*arguments, cwd=None):
    return subprocess.run([PROGRAM, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=300)


def metrics(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


class Digits(unittest.TestCase):
    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory()
        self.addCleanup(self.temporary.cleanup)
        self.folder = pathlib.Path(self.temporary.name)

    def test_reaches_its_accuracy_and_draws_predictions(self):
        begin = time.monotonic()
        result = run("--runs", self.folder)
        print(f"digits trained in {time.monotonic() - begin:.1f} s", file=sys.stderr)
        self.assertEqual(result.returncode, 0, result.stderr)
        last = metrics(self.folder / "digits" / "version_0")[-1]
        self.assertGreaterEqual(float(last["test/accuracy"]), 0.98)
        self.assertIn("test/accuracy", result.stdout)
        self.assertEqual(result.stdout.count("→"), 8)

    def test_same_seed_same_bits(self):
        files = {}
        for name, seed in ("a", 1), ("b", 1), ("c", 2):
            # In one place one after the other: a checkpoint names the others.
            result = run("--epochs", 2, "--seed", seed, "--runs", self.folder / "same")
            self.assertEqual(result.returncode, 0, result.stderr)
            version = self.folder / "same" / "digits" / "version_0"
            files[name] = [(version / f).read_bytes() for f in ("metrics.csv", "checkpoints/last.ckpt")]
            shutil.rmtree(self.folder / "same")
        self.assertEqual(files["a"], files["b"])
        self.assertNotEqual(files["a"][0], files["c"][0])
        self.assertNotEqual(files["a"][1], files["c"][1])

    def test_the_composed_backward_pass_converges_as_autograd_does(self):
        plan = run("--plan").stdout
        self.assertIn("composed of 14 layers\n", plan)
        self.assertIn("autograd: the runtime's gradient policy", run("--plan", "--autograd").stdout)
        rows = {}
        for name, arguments in ("composed", []), ("autograd", ["--autograd"]):
            result = run("--epochs", 4, "--runs", self.folder / name, *arguments)
            self.assertEqual(result.returncode, 0, result.stderr)
            rows[name] = [row for row in metrics(self.folder / name / "digits" / "version_0") if row.get("val/loss")]
        self.assertEqual(len(rows["composed"]), 4)
        # One step differs by 1e-7; four epochs later that has grown, but the curves are the same to the eye.
        for ours, theirs in zip(rows["composed"], rows["autograd"]):
            self.assertAlmostEqual(float(ours["val/loss"]), float(theirs["val/loss"]), delta=0.02)
            self.assertAlmostEqual(float(ours["val/accuracy"]), float(theirs["val/accuracy"]), delta=0.011)

    def test_ctrl_c_ends_in_order_and_the_run_goes_on_from_its_checkpoint(self):
        process = subprocess.Popen([PROGRAM, "--epochs", "100000", "--runs", self.folder], stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, text=True)
        checkpoint = self.folder / "digits" / "version_0" / "checkpoints" / "last.ckpt"
        for _ in range(600):  # the first epoch's checkpoint says that training runs
            if checkpoint.exists() or process.poll() is not None:
                break
            time.sleep(0.1)
        before = checkpoint.stat().st_mtime_ns
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 130, errors)
        self.assertIn("Ctrl-C: ending in order", errors)
        self.assertGreaterEqual(checkpoint.stat().st_mtime_ns, before)
        rows = metrics(checkpoint.parent.parent)
        self.assertGreaterEqual(len(rows), 1, "what was logged before is in the file")
        epoch = max(int(row["epoch"]) for row in rows)
        result = run("--load", checkpoint, "--epochs", epoch + 2, "--runs", self.folder)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertGreaterEqual(int(metrics(self.folder / "digits" / "version_1")[-1]["epoch"]), epoch + 1)

    def test_reads_mnist_files_gzipped_and_plain(self):
        images, labels = ((DATA / f"digits-{f}").read_bytes() for f in ("images-idx3-ubyte", "labels-idx1-ubyte"))
        pixels = images[16:16 + 300 * 64]
        # Each pixel becomes 4×4, within 32×32: not MNIST's 28×28, but as large and of the same form.
        rows = [pixels[i:i + 8] for i in range(0, len(pixels), 8)]
        large = b"".join(bytes(p for p in row for _ in range(4)) * 4 for row in rows)
        for prefix in "train", "t10k":
            with gzip.open(self.folder / f"{prefix}-images-idx3-ubyte.gz", "wb") as file:
                file.write(struct.pack(">IIII", 0x803, 300, 32, 32) + large)
            (self.folder / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, 300) + labels[8:308])
        result = run("--data", self.folder, "--epochs", 2, "--runs", self.folder / "runs")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertGreater(float(metrics(self.folder / "runs" / "digits" / "version_0")[-1]["test/accuracy"]), 0.3)
        body = (self.folder / "train-images-idx3-ubyte.gz").read_bytes()
        (self.folder / "train-images-idx3-ubyte.gz").write_bytes(body[:len(body) // 2])
        self.error(["--data", self.folder], "train-images-idx3-ubyte.gz")

    def error(self, arguments, *expected):
        result = run(*arguments, cwd=self.folder)
        self.assertNotEqual(result.returncode, 0)
        message = result.stderr + result.stdout
        for part in expected:
            self.assertIn(str(part), message)
        self.assertLessEqual(len(message.strip().splitlines()), 3, message)

    def test_errors_are_one_message_that_names_the_thing(self):
        self.error(["--epoch", "3"], "--epoch")
        self.error(["--epochs", "-3"], "--epochs", "-3")
        self.error(["--epochs", "many"], "--epochs", "many")
        self.error(["--data", "nowhere"], "--data", "nowhere")
        self.error(["--data", self.folder], self.folder, "train-images-idx3-ubyte")
        self.error(["--load", "none.ckpt"], "--load", "none.ckpt")
        (self.folder / "bad.ckpt").write_bytes(b"this is no checkpoint")
        self.error(["--load", "bad.ckpt"], "bad.ckpt")
        (self.folder / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03\0\0")
        (self.folder / "train-labels-idx1-ubyte").write_bytes((DATA / "digits-labels-idx1-ubyte").read_bytes())
        self.error(["--data", self.folder], "train-images-idx3-ubyte")

    def test_a_run_folder_that_cannot_be_made_is_an_error(self):
        (self.folder / "file").write_text("")
        result = run("--epochs", 1, "--runs", self.folder / "file")
        self.assertEqual(result.returncode, 1)
        self.assertIn(f"cannot make a run folder in '{self.folder / 'file'}", result.stderr)

    def test_help_and_plan(self):
        result = run("--help")
        self.assertEqual(result.returncode, 0)
        for option in "--data", "--epochs", "--seed", "--load":
            self.assertIn(option, result.stdout)
        result = run("--plan", cwd=self.folder)
        self.assertEqual(result.returncode, 0)
        self.assertIn("training_step               default", result.stdout)
        self.assertEqual(os.listdir(self.folder), [], "the plan writes nothing")


unittest.main(argv=sys.argv[:1], verbosity=2)
