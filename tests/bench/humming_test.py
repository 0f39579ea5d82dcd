"""bench/peers/humming.py without a GPU: which problems it measures, what stands in the file, and when it stops. Humming and
nybble are stand-ins; that humming itself is called rightly, only a run on a GPU shows."""
import importlib.util
import json
import pathlib
import stat
import sys
import tempfile
import textwrap
import unittest

SOURCE = pathlib.Path(__file__).resolve().parents[2]


def load_module():
    spec = importlib.util.spec_from_file_location("humming_peer", SOURCE / "bench/peers/humming.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


peer = load_module()

# Writes a row of nybble and one of cuBLAS for each problem, as `nybble bench` does, and notes how it was called.
NYBBLE = """\
    #!{python}
    import json, pathlib, sys
    words = sys.argv[1:]
    value = lambda name: words[words.index(name) + 1]
    here = pathlib.Path(__file__).parent
    with open(here / "calls", "a") as calls:
        calls.write(value("--shape") + " " + value("--m") + "\\n")
    n, k = map(int, value("--shape").split("x"))
    rows = []
    for m in map(int, value("--m").split(",")):
        row = {{"problem": f"m{{m}} n{{n}} k{{k}} bf16 g128", "impl": "nybble", "m": m, "n": n, "k": k, "act": "bf16",
               "format": "int4", "group_size": 128, "zero_point": "none", "kernel": "some", "pdl": True,
               "duty": value("--duty").replace("auto", "idle10" if m < 256 else "burst"), "us": 4.0,
               "floor_us": 2.0, "dense_us": 9.0, "spread": 0.01, "sm_mhz": 1900.0}}
        rows += [row, row | {{"impl": "cublas", "format": None, "group_size": None, "zero_point": None, "us": 9.0}}]
    pathlib.Path(value("--json")).write_text(json.dumps(
        {{"schema": 1, "gpu": "NVIDIA H200", "driver": "1", "cuda": "13.0", "commit": (here / "commit").read_text(),
         "date": "2026-11-25T00:00:00Z", "command": "nybble bench", "floor": {{}},
         "duty_cycles": {{"idle10": {{"idle_ms": 10, "replay_ms": 4, "replays": 15}},
                         "burst": {{"idle_ms": 100, "replay_ms": 4, "replays": 9}},
                         "sustained": {{"idle_ms": 0, "replay_ms": 400, "replays": 5}}}}, "rows": rows}}))
    sys.exit(int((here / "exit").read_text()))
"""


class StandIn:
    """In humming's place: every launch takes 8 us."""

    version = "humming-kernels 0.1.19"

    def __init__(self, fails=()):
        self.fails, self.prepared, self.measured = fails, [], []

    def prepare(self, n, k, ms):
        self.prepared.append((n, k, ms))

    def measure(self, m, cycle, replays):
        self.measured.append((m, cycle["idle_ms"], replays))
        if m in self.fails:
            raise peer.PeerError("wrong")
        return peer.Measured([8.0] * 5, "mma_8x128x128", False)


class Runs(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = pathlib.Path(temporary.name)
        self.file = self.folder / "rows.json"
        self.nybble = self.folder / "nybble"
        self.nybble.write_text(textwrap.dedent(NYBBLE).format(python=sys.executable))
        self.nybble.chmod(self.nybble.stat().st_mode | stat.S_IXUSR)
        self.nybble_says(0, "abc")

    def nybble_says(self, code, commit):
        (self.folder / "exit").write_text(str(code))
        (self.folder / "commit").write_text(commit)

    def run_with(self, stand_in, *words):
        options = peer.parse(["--results", str(self.file), "--nybble", str(self.nybble), *words])
        code = peer.run(options, stand_in, "bench/peers/humming.py ...")
        return code, json.loads(self.file.read_text()) if self.file.exists() else None

    def calls(self):
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def test_rows_of_all_stand_together(self):
        stand_in = StandIn()
        code, result = self.run_with(stand_in, "--shape", "4096x4096", "--m", "1,256")
        self.assertEqual(code, 0)
        self.assertEqual([(row["impl"], row["m"]) for row in result["rows"]],
                         [(impl, m) for m in (1, 256) for impl in ("nybble", "humming", "cublas")])
        ours, theirs = result["rows"][:2]
        self.assertEqual(list(theirs), list(ours))
        self.assertEqual((theirs["us"], theirs["spread"], theirs["kernel"], theirs["pdl"], theirs["sm_mhz"]),
                         (8.0, 0.0, "mma_8x128x128", False, None))
        for same in ("problem", "duty", "floor_us", "dense_us", "group_size"):
            self.assertEqual(theirs[same], ours[same])
        self.assertEqual(stand_in.measured, [(1, 10, 0), (256, 100, 0)])
        self.assertEqual(result["command"], "bench/peers/humming.py ...")
        self.assertEqual(result["peers"], {"humming": "humming-kernels 0.1.19"})

    def test_turns_by_shape_and_chunk(self):
        stand_in = StandIn()
        self.run_with(stand_in, "--shape", "64x128,128x64", "--m", "1,2,4", "--chunk", "2")
        self.assertEqual(self.calls(), ["64x128 1,2", "64x128 4", "128x64 1,2", "128x64 4"])
        self.assertEqual(stand_in.prepared, [(64, 128, [1, 2, 4]), (128, 64, [1, 2, 4])])

    def test_resumes_by_row(self):
        self.run_with(StandIn(), "--shape", "64x128", "--m", "1,2")
        stand_in = StandIn()
        code, result = self.run_with(stand_in, "--shape", "64x128,128x64", "--m", "1,2,4")
        self.assertEqual((code, stand_in.prepared), (0, [(64, 128, [4]), (128, 64, [1, 2, 4])]))
        self.assertEqual(len(result["rows"]), 3 * 6)
        stand_in = StandIn()
        self.run_with(stand_in, "--shape", "64x128,128x64", "--m", "1,2,4")
        self.assertEqual((stand_in.prepared, len(self.calls())), ([], 3))

    def test_another_duty_cycle_is_another_question(self):
        self.run_with(StandIn(), "--shape", "64x128", "--m", "256")
        stand_in = StandIn()
        _, result = self.run_with(stand_in, "--shape", "64x128", "--m", "256", "--duty", "sustained")
        self.assertEqual(stand_in.measured, [(256, 0, 0)])
        self.assertEqual({row["duty"] for row in result["rows"]}, {"burst", "sustained"})
        for words in ((), ("--duty", "sustained")):
            stand_in = StandIn()
            self.run_with(stand_in, "--shape", "64x128", "--m", "256", *words)
            self.assertEqual(stand_in.measured, [])

    def test_a_time_limit_leaves_the_rest(self):
        stand_in = StandIn()
        code, result = self.run_with(stand_in, "--shape", "64x128,128x64", "--m", "1", "--time-limit", "0.000001")
        self.assertEqual((code, result, stand_in.prepared), (0, None, []))

    def test_what_humming_cannot_do_fails_but_keeps_the_others(self):
        code, result = self.run_with(StandIn(fails=(1,)), "--shape", "64x128", "--m", "1,2")
        self.assertEqual(code, 1)
        self.assertEqual([(row["impl"], row["m"]) for row in result["rows"]],
                         [("nybble", 1), ("cublas", 1), ("nybble", 2), ("humming", 2), ("cublas", 2)])

    def test_a_wrong_result_of_nybble_fails(self):
        self.nybble_says(1, "abc")
        self.assertEqual(self.run_with(StandIn(), "--shape", "64x128", "--m", "1")[0], 1)

    def test_a_nybble_that_breaks_ends_it(self):
        self.nybble_says(3, "abc")
        with self.assertRaisesRegex(SystemExit, "code 3"):
            self.run_with(StandIn(), "--shape", "64x128", "--m", "1")

    def test_a_file_of_another_commit_is_refused(self):
        self.run_with(StandIn(), "--shape", "64x128", "--m", "1")
        self.nybble_says(0, "def")
        with self.assertRaisesRegex(SystemExit, "commit 'abc', this is 'def'"):
            self.run_with(StandIn(), "--shape", "64x128", "--m", "2")

    def test_wrong_words(self):
        for words in (("--shape", "64"), ("--m", "few"), ("--chunk", "0"), ("--set", str(self.folder / "none.txt"))):
            with self.assertRaises(SystemExit):
                self.run_with(StandIn(), *words)


class Parts(unittest.TestCase):
    def test_the_set_is_that_of_nybble(self):
        shapes, ms = peer.read_set(SOURCE / "bench/shapes.txt")
        self.assertEqual((len(shapes), len(ms), shapes[0], ms[-1]), (24, 36, (4096, 4096), 8192))

    def test_padding(self):
        self.assertEqual(peer.padded(4096, 4096), (4096, 4096))
        self.assertEqual(peer.padded(7392, 2880), (7424, 2944))

    def test_the_interval_that_holds_m(self):
        intervals = [[0, 1, "a"], [1, 8, "b"], [8, 1 << 30, "c"]]
        self.assertEqual([peer.config_for(intervals, m) for m in (1, 2, 8, 9, 8192)], ["a", "b", "b", "c", "c"])

    def test_a_kernel_is_named_by_its_config(self):
        config = {"mma_type": "wgmma", "block_shape": [176, 256, 64], "warp_shape": [176, 64, 64], "num_stages": 4,
                  "use_stream_k": True, "use_tma": True, "use_warp_spec": True, "multi_cast_size_a": 2, "use_pdl": True}
        self.assertEqual(peer.describe(config), "wgmma_176x256x64_warp176x64x64_s4_c1_streamk_ws_tma_pdl_mca2")

    def test_spread_is_between_the_deciles(self):
        row = peer.row_of({"impl": "nybble", "us": 1}, peer.Measured([10.0, 11.0, 12.0, 13.0, 14.0], "k", True))
        self.assertEqual((row["us"], row["spread"], row["pdl"]), (12.0, round(3.2 / 12, 4), True))
        self.assertEqual(peer.row_of({}, peer.Measured([10.0], "k", True))["spread"], 0)


if __name__ == "__main__":
    unittest.main()
