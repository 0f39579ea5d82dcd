"""The verbs that write models, killed at random points and with each of their system calls failing in turn.

Afterwards every file on disk is whole, the old one or the new one; a model folder holds the old model or the new one, or
is refused by the reader; and the same command with --resume completes it to the same bytes.

NYBBLE_KILLS  how many runs are killed (default 500)
"""
import errno
import os
import pathlib
import random
import shutil
import subprocess
import tempfile
import time
import unittest

from harness import NYBBLE, Case, Done, run, write_model

SHIM = os.environ.get("NYBBLE_FAILING_CALLS", "")
KILLS = int(os.environ.get("NYBBLE_KILLS", "500"))
# What a killed process wrote is the system's, whatever holds it: a file system in memory tells the same as a disk, without
# thousands of waits for one.
SCRATCH = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
TEMPORARY, UNFINISHED, MANIFEST = ".nybble-tmp.", ".nybble-unfinished", "manifest.json"
KILLED = -9


def tree(folder):
    """{path within the folder: its bytes}."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def model_files(files, folder):
    """Those of `files` that lie in `folder`, but for temporary ones."""
    start = folder + "/" if folder else ""
    return {name: data for name, data in files.items() if name.startswith(start) and TEMPORARY not in name}


class Job:
    """A command that writes a model, and what it makes of a model and of an older one. `models`: the folders in its
    output that are models."""

    def __init__(self, name, words, inputs, models, folder):
        self.name, self.words, self.models, self.input = name, words, models, inputs[0]
        trees = []
        for age, source in zip(("new", "old"), inputs):
            out = folder / f"{name}-{age}"
            begin = time.monotonic()
            done = run(words[0], source, *words[1:], "--out", out)
            self.seconds = time.monotonic() - begin
            assert done.code == 0, done.err
            trees.append(tree(out))
        self.new, self.old = trees
        assert self.new.keys() == self.old.keys() and self.new != self.old

    def start(self, out, *options, **fault):
        """The command; with `nth` and `fault`, under a call that fails; with `log`, counting."""
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
        if fault:
            environment.update(LD_PRELOAD=SHIM, NYBBLE_FAULT_ROOT=str(out))
            environment.update({key: str(value) for key, value in fault.items()})
        return subprocess.Popen([NYBBLE, self.words[0], str(self.input), *self.words[1:], "--out", str(out), *options],
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                env=environment)


def finish(process):
    out, err = process.communicate()
    return Done(subprocess.CompletedProcess(process.args, process.returncode, out, err))


@unittest.skipUnless(SHIM, "built with a sanitizer, whose runtime does not go with preloaded calls")
class Faults(Case):
    @classmethod
    def setUpClass(cls):
        temporary = tempfile.TemporaryDirectory(dir=SCRATCH)
        cls.addClassCleanup(temporary.cleanup)
        folder = pathlib.Path(temporary.name).resolve()
        dense, packed = [], []
        for i, age in enumerate(["new", "old"]):
            dense.append(write_model(folder / age, "F16", shards=2, seed=100 * i))
            packed.append(folder / f"{age}-4bit")
            (dense[i] / "tokenizer.json").write_text(f'{{"age": "{age}"}}')
            (dense[i] / "1_Pooling").mkdir()
            (dense[i] / "1_Pooling" / "config.json").write_text(f'{{"age": "{age}"}}')
            done = run("quantize", dense[i], "--out", packed[i], "--group", "64")
            assert done.code == 0, done.err
        cls.jobs = [Job(to, ["convert", "--to", to], packed, [""], folder)
                    for to in ("dense", "compressed-tensors", "gptq", "awq")]
        cls.jobs.append(Job("nybble", ["convert", "--to", "nybble"], packed, ["model"], folder))
        cls.jobs.append(Job("quantize", ["quantize", "--group", "64"], dense, [""], folder))
        split, ranks = ["shard", "--tp", "2", "--column", "query", "--row", "layer.0.dense", "--to"], ["rank-0-of-2", "rank-1-of-2"]
        cls.jobs.append(Job("shard", [*split, "gptq"], packed, ranks, folder))
        cls.jobs.append(Job("shard-nybble", [*split, "nybble"], packed, [rank + "/model" for rank in ranks], folder))

    def setUp(self):
        temporary = tempfile.TemporaryDirectory(dir=SCRATCH)
        self.addCleanup(temporary.cleanup)
        self.folder = pathlib.Path(temporary.name)

    def fresh_folder(self, job, over_old):
        """What is there before the run: nothing, or an older model."""
        out = self.folder.resolve() / "out"
        shutil.rmtree(out, ignore_errors=True)
        for name, data in (job.old if over_old else {}).items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_bytes(data)
        return out

    def calls(self, job, out, options):
        log = self.folder / "log"
        log.unlink(missing_ok=True)
        done = finish(job.start(out, *options, NYBBLE_FAULT_LOG=log))
        self.assertEqual(done.code, 0, done.err)
        self.assertEqual(tree(out), job.new)
        self.assertTrue(log.exists(), f"{SHIM} was not loaded: no call was counted")
        return log.read_text().splitlines()

    def check(self, job, out, old, done):
        """What a run that failed or was killed may have left."""
        found = tree(out) if out.exists() else {}
        if done.code != KILLED:
            self.assertGreater(done.code, 0)
            self.assertNotEqual(done.err, "")
            self.assertEqual([name for name in found if TEMPORARY in name], [])
        for name, data in found.items():
            if TEMPORARY not in name and pathlib.PurePath(name).name != UNFINISHED:
                self.assertIn(data, (old.get(name), job.new.get(name)), name)
        for name in found:
            if pathlib.PurePath(name).name == MANIFEST:
                folder = name.rpartition("/")[0]
                self.assertIn(model_files(found, folder), (model_files(old, folder), model_files(job.new, folder)))
        for model in job.models:
            left = model_files(found, model)
            read = run("inspect", out / model)
            if left and left in (model_files(old, model), model_files(job.new, model)):
                self.assertEqual(read.code, 0, read.err)
            else:
                self.assertGreater(read.code, 0, f"a half model is read: {sorted(left)}")
                self.assertNotEqual(read.err, "")
                if any(name.endswith(".safetensors") for name in left):
                    self.assertIn("--resume", read.err)

    def complete(self, job, out):
        done = finish(job.start(out, "--resume"))
        self.assertEqual(done.code, 0, done.err)
        self.assertEqual(tree(out), job.new)

    def test_each_failing_call(self):
        for job in self.jobs:
            failed = 0
            for over_old in (False, True):
                options = ["--force"] if over_old else []
                old = job.old if over_old else {}
                calls = self.calls(job, self.fresh_folder(job, over_old), options)
                for nth, call in enumerate(calls, 1):
                    for error in (errno.ENOSPC, errno.EIO):
                        with self.subTest(job=job.name, over_old=over_old, nth=nth, call=call, error=errno.errorcode[error]):
                            out = self.fresh_folder(job, over_old)
                            done = finish(job.start(out, *options, NYBBLE_FAULT_NTH=nth, NYBBLE_FAULT=error))
                            if done.code == 0:  # a call whose result nothing depends on
                                self.assertEqual(tree(out), job.new)
                                continue
                            failed += 1
                            self.check(job, out, old, done)
                            self.complete(job, out)
            print(f"{job.name}: {failed} runs failed at a call")
            self.assertGreater(failed, 0)

    def test_killed_at_random_points(self):
        source = random.Random(0)
        runs = killed = 0
        lengths = {}
        while killed < KILLS:
            job, over_old = self.jobs[runs % len(self.jobs)], source.random() < 0.5
            runs += 1
            self.assertLess(runs, 3 * KILLS, "most runs end before they are killed")
            options, old = (["--force"], job.old) if over_old else ([], {})
            if (job.name, over_old) not in lengths:
                lengths[job.name, over_old] = len(self.calls(job, self.fresh_folder(job, over_old), options))
            if source.random() < 0.5:  # at a call, or within the bytes it writes
                fault = {"NYBBLE_FAULT_NTH": source.randint(1, lengths[job.name, over_old]),
                         "NYBBLE_FAULT": source.choice(["kill-before", "kill-within", "kill-after"])}
                seconds = None
            else:  # at a time
                fault, seconds = {}, source.uniform(0, job.seconds)
            with self.subTest(run=runs, job=job.name, over_old=over_old, fault=fault, seconds=seconds):
                out = self.fresh_folder(job, over_old)
                process = job.start(out, *options, **fault)
                if seconds is not None:
                    time.sleep(seconds)
                    process.kill()
                done = finish(process)
                if done.code == 0:  # it was over before
                    self.assertEqual(tree(out), job.new)
                    continue
                self.assertEqual(done.code, KILLED, done.err)
                killed += 1
                self.check(job, out, old, done)
                self.complete(job, out)
        print(f"{killed} of {runs} runs killed before they ended")


if __name__ == "__main__":
    unittest.main()
