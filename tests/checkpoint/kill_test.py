# Ends a run by SIGKILL in the middle of its saves, by SIGTERM and by SIGUSR1 (with a stand-in for SLURM), and lets it go on: the
# weights are those of the run that nobody ended. Called as: kill_test.py PROGRAM.
import os
import pathlib
import random
import signal
import stat
import subprocess
import sys
import tempfile
import time
import unittest

PROGRAM = pathlib.Path(sys.argv[1]).resolve()
EPOCHS = 12
KILLS = 25


class Kills(unittest.TestCase):
    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory()
        self.addCleanup(self.temporary.cleanup)
        self.folder = pathlib.Path(self.temporary.name)

    def start(self, **environment):
        return subprocess.Popen([PROGRAM, self.folder / "runs", str(EPOCHS)], stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True, env={**os.environ, **environment})

    def finish(self, process):
        """The hash of the weights, and what was said on stderr."""
        out, err = process.communicate(timeout=120)
        self.assertEqual(process.returncode, 0, err)
        lines = [line for line in out.splitlines() if line.startswith("weights ")]
        self.assertEqual(len(lines), 1, out)
        return lines[0], err

    def undisturbed(self):
        with tempfile.TemporaryDirectory() as folder:
            process = subprocess.Popen([PROGRAM, folder, str(EPOCHS)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            return self.finish(process)[0]

    def when_training(self, process, steps):
        """Waits until the run has done some steps. False if it ended before."""
        first = None
        for line in process.stdout:
            if line.startswith("step "):
                step = int(line.split()[1])
                first = step if first is None else first
                if step - first >= steps:
                    return True
        return False

    def test_sigkill(self):
        expected = self.undisturbed()
        chance = random.Random(5)
        kills = 0
        while kills < KILLS:
            process = self.start()
            if not self.when_training(process, chance.randrange(3)):
                break
            # A save follows each step's line, and takes some milliseconds.
            time.sleep(chance.random() * 0.02)
            process.kill()
            process.communicate()
            kills += 1
        weights, err = self.finish(self.start())
        self.assertEqual(weights, expected)
        self.assertGreater(kills, 10, "the runs were over before they could be killed")
        print(f"{kills} kills, the weights are those of the undisturbed run", file=sys.stderr)

    def test_sigterm(self):
        expected = self.undisturbed()
        process = self.start()
        self.assertTrue(self.when_training(process, 3))
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 128 + signal.SIGTERM, err)
        self.assertIn("SIGTERM: ending in order", err)
        self.assertEqual(self.finish(self.start())[0], expected)

    def test_sigusr1_sends_a_slurm_job_back_to_the_queue(self):
        expected = self.undisturbed()
        tools = self.folder / "tools"
        tools.mkdir()
        scontrol = tools / "scontrol"
        scontrol.write_text(f'#!/bin/sh\necho "$@" >> "{self.folder}/scontrol.log"\n')
        scontrol.chmod(scontrol.stat().st_mode | stat.S_IXUSR)
        slurm = {"SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "train", "PATH": f"{tools}:{os.environ['PATH']}"}
        process = self.start(**slurm)
        self.assertTrue(self.when_training(process, 3))
        process.send_signal(signal.SIGUSR1)
        _, err = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 128 + signal.SIGUSR1, err)
        self.assertEqual((self.folder / "scontrol.log").read_text(), "requeue 77\n")
        left = self.folder / "runs" / "run" / "hpc_ckpt_77.ckpt"
        self.assertTrue(left.is_file())
        # The job goes on from there, whatever else there is; another job does not.
        for path in (self.folder / "runs").rglob("last.ckpt"):
            path.unlink()
        weights, err = self.finish(self.start(**slurm))
        self.assertIn(str(left), err)
        self.assertEqual(weights, expected)
        weights, err = self.finish(self.start(**{**slurm, "SLURM_JOB_ID": "78"}))
        self.assertNotIn("hpc_ckpt", err)

    def test_sigusr1_without_slurm_ends_in_order(self):
        process = self.start()
        self.assertTrue(self.when_training(process, 1))
        process.send_signal(signal.SIGUSR1)
        _, err = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 128 + signal.SIGUSR1, err)
        self.assertFalse(list(self.folder.rglob("hpc_ckpt*")))
        self.assertTrue(list(self.folder.rglob("last.ckpt")))

    def test_a_job_that_cannot_be_requeued_says_so(self):
        process = self.start(SLURM_JOB_ID="79", SLURM_JOB_NAME="train", PATH=str(self.folder))
        self.assertTrue(self.when_training(process, 1))
        process.send_signal(signal.SIGUSR1)
        _, err = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 128 + signal.SIGUSR1, err)
        self.assertIn("cannot send job 79 back to the queue: scontrol: No such file or directory", err)
        self.assertTrue((self.folder / "runs" / "run" / "hpc_ckpt_79.ckpt").is_file())


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[2:])
