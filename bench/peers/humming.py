#!/usr/bin/env python3
"""Times humming-kernels, a W4A16 library that compiles its kernels when they are first used, beside nybble.

    bench/peers/humming.py --results FILE.json [--nybble build/full/nybble] [--time-limit SECONDS]
                           [--set bench/shapes.txt | --shape NxK,... --m M,...] [--duty auto] [--pdl best|default]
                           [--replays N] [--chunk N] [--no-dense]

Needs a Hopper GPU, torch, and `pip install humming-kernels==0.1.19` with what it asks for; its compiler is NVRTC, or nvcc
with HUMMING_COMPILER=nvcc in the environment.

Both measure the same problems within seconds of each other: a few m of one shape with `nybble bench`, then the same with
humming, in the duty cycle that nybble's rows name. bf16 activations, symmetric int4 codes of all 16 values, groups of 128
with bf16 scales; CUDA graphs of launches over copies of the weight that hold more than three L2 caches; outputs checked
against a float64 product before anything is timed. Humming runs the kernel that its heuristics choose for the shape and m,
as its layer does without a tuning config. Its default on Hopper launches without programmatic dependent launch; --pdl best
also tries the same kernel with it and times the faster of the two. Shapes whose n is no multiple of 256, or whose k is none
of 128, are padded as its documentation advises; activations and outputs are not.

Rows of all implementations of a problem go to FILE together, once all are measured, so that they are always of one run. A
problem that stands in FILE is not measured again: a run that ended at its time limit goes on with the same command.
Exit code: 0 all is well, also at the time limit; 1 a result was wrong, or humming could not run a problem; 2 the request is
wrong, or FILE is of another GPU, driver or commit.
"""
import argparse
import concurrent.futures
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import shlex
import statistics
import subprocess
import sys
import tempfile
import time

BENCH = pathlib.Path(__file__).resolve().parents[1]
# Python searches a script's own folder first, and there `import humming` would find this file.
sys.path[:] = [str(BENCH)] + [path for path in sys.path if pathlib.Path(path or ".").resolve() != BENCH / "peers"]
import result_files  # noqa: E402

IMPL, PACKAGE = "humming", "humming-kernels"
GROUP = 128
PAD_N, PAD_K = 256, GROUP
GRAPH_MS = 4      # of launches in one graph, as in bench/cuda_bench.cc
MAX_LAUNCHES = 8000
PROBE_LAUNCHES = 20
CHECKED_TOKENS = 32
# Of a token's outputs, in shares of their rms. bf16 weights and outputs give 0.003 on the whole. The worst of a million
# elements: at five to six times the rms the store alone rounds by up to 2^-8 of that, 0.023, and the weights' roundings, of
# rms 0.002 in the sum, reach five times that beside it; twice both is allowed. An output that is wrong misses by about 1.
LARGEST_ERROR, LARGEST_ELEMENT_ERROR = 0.01, 0.0625


class PeerError(Exception):
    """Humming cannot do a problem, or does it wrongly."""


@dataclasses.dataclass
class Measured:
    us: list  # of each replay, a launch
    kernel: str
    pdl: bool


# --- what needs no GPU -------------------------------------------------------------------------------------------------

def shapes_of(text):
    try:
        return [(int(n), int(k)) for n, k in (shape.split("x") for shape in text.split(","))]
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no list of shapes such as 28672x4096,8192x8192") from None


def tokens_of(text):
    try:
        return [int(m) for m in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no list of token counts such as 1,16,4096") from None


def read_set(path):
    """(shapes, ms) of a file in the form of bench/shapes.txt."""
    shapes, ms = [], []
    for line in pathlib.Path(path).read_text(encoding="utf-8").splitlines():
        words = line.partition("#")[0].split()
        if words[:1] == ["m"]:
            ms += map(int, words[1:])
        elif words[:1] == ["shape"]:
            shapes += shapes_of(words[1])
    return shapes, ms


def is_wanted(row):
    return (row["impl"] == "nybble" and row["act"] == "bf16" and row["group_size"] == GROUP and row["zero_point"] == "none"
            and result_files.is_layer(row))


def missing(result, shape, ms, duty):
    """The token counts of which the file has no row in the duty cycle that was asked for."""
    def answers(row):
        # auto chooses by m among the cycles with rest.
        return row["duty"] == duty or (duty == "auto" and row["duty"] != "sustained")

    rows = result["rows"] if result else []
    known = {row["m"] for row in rows if is_wanted(row) and (row["n"], row["k"]) == shape and answers(row)}
    return [m for m in ms if m not in known]


def chunks(ms, size):
    return [ms[i:i + size] for i in range(0, len(ms), size)]


def padded(n, k):
    return -(-n // PAD_N) * PAD_N, -(-k // PAD_K) * PAD_K


def config_for(intervals, m):
    """Of what humming's heuristics list as [above, up to, config]."""
    return next(config for above, upto, config in intervals if above < m <= upto)


def describe(config):
    """A kernel's name made of what its config says."""
    def tile(shape):
        return "x".join(map(str, shape))

    words = [config["mma_type"], tile(config["block_shape"]), "warp" + tile(config["warp_shape"]),
             f"s{config['num_stages']}", f"c{config.get('num_ctas_per_sm', 1)}"]
    words += [name for key, name in (("use_stream_k", "streamk"), ("use_warp_spec", "ws"), ("use_tma", "tma"),
                                     ("use_pdl", "pdl")) if config.get(key)]
    words += [f"{axis}{config[key]}" for key, axis in (("multi_cast_size_a", "mca"), ("multi_cast_size_b", "mcb"))
              if config.get(key, 1) > 1]
    return "_".join(words)


def row_of(ours, measured):
    """Humming's row beside nybble's row of the same problem."""
    median = statistics.median(measured.us)
    # Deciles between neighbouring samples, as bench/bench.cc takes them.
    deciles = statistics.quantiles(measured.us, n=10, method="inclusive") if len(measured.us) > 1 else [median] * 9
    return ours | {"impl": IMPL, "kernel": measured.kernel, "pdl": measured.pdl, "us": round(median, 4),
                   "spread": round((deciles[-1] - deciles[0]) / median, 4), "sm_mhz": None}


def merged(result, part, rows, command, peer):
    """The file with the rows of this part; the first part also gives its head."""
    if result is None:
        result = part | {"command": command, "peers": {IMPL: peer}, "rows": []}
    now = part | {"peers": {IMPL: peer}}
    for what in ("gpu", "driver", "commit", "peers"):
        if result.get(what) != now.get(what):
            raise SystemExit(f"humming: the results are of {what} {result.get(what)!r}, this is {now.get(what)!r}; rows of "
                             "both must not stand in one file: give --results another one")
    return result | {"rows": result["rows"] + rows}


def run_nybble(options, shape, ms):
    """What `nybble bench` writes for these problems, and whether a result of it was wrong."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "nybble.json")
        command = [options.nybble, "bench", "--device", "cuda", "--shape", "x".join(map(str, shape)), "--m",
                   ",".join(map(str, ms)), "--duty", options.duty, "--json", str(path)]
        if options.replays:
            command += ["--replays", str(options.replays)]
        if options.no_dense:
            command.append("--no-dense")
        code = subprocess.run(command, check=False).returncode
        # 1: a result was wrong; 2: no kernel for one of the problems. The rows of the others are there.
        if code not in (0, 1, 2) or not path.exists():
            raise SystemExit(f"humming: {shlex.join(command)} ended with code {code}")
        return result_files.load(path), code == 1


def run_chunk(options, peer, shape, ms):
    """(nybble's file, rows of all implementations, whether something was wrong) for some m of one shape."""
    part, bad = run_nybble(options, shape, ms)
    rows = []
    for row in part["rows"]:
        rows.append(row)
        if not is_wanted(row):
            continue
        try:
            rows.append(row_of(row, peer.measure(row["m"], part["duty_cycles"][row["duty"]], options.replays)))
        except PeerError as error:
            bad = True
            print(f"humming: {row['problem']}: {error}", file=sys.stderr)
            continue
        ours, theirs = row["us"], rows[-1]["us"]
        print(f"{'':>14} {row['m']:>6} {row['duty']:>10} {theirs:>9.2f} us humming, nybble {theirs / ours:.2f}x as fast  "
              f"{rows[-1]['kernel']}", flush=True)
    return part, rows, bad


def run(options, peer, command):
    result = result_files.load(options.results) if os.path.exists(options.results) else None
    begin, longest, left, bad = time.monotonic(), 0.0, 0, False
    for shape in options.shapes:
        ms = missing(result, shape, options.ms, options.duty)
        loaded = False
        for part_ms in chunks(ms, options.chunk):
            started = time.monotonic()
            # A part that would not end in time is not begun: its rows would be lost.
            if options.time_limit and started + longest - begin > options.time_limit:
                left += len(part_ms)
                continue
            if not loaded:
                loaded = True
                peer.prepare(*shape, ms)
                print(f"{shape[0]}x{shape[1]}: kernels are ready after {time.monotonic() - started:.1f} s", flush=True)
            part, rows, wrong = run_chunk(options, peer, shape, part_ms)
            bad |= wrong
            result = merged(result, part, rows, command, peer.version)
            result_files.save(result, options.results)
            longest = max(longest, time.monotonic() - started)
    if left:
        print(f"{left} problems are left: the time limit of {options.time_limit:g} s is near")
    print(f"{len(result['rows']) if result else 0} rows in {options.results}")
    return 1 if bad else 0


# --- what needs one ----------------------------------------------------------------------------------------------------

class Humming:
    """The package, with one shape's weights at a time."""

    def __init__(self, pdl):
        import humming.ops  # noqa: F401  (registers the operators)
        import torch
        from humming.ops.utils import init_humming_launcher
        self.torch, self.pdl = torch, pdl
        self.version = f"{PACKAGE} {importlib.metadata.version(PACKAGE)}"
        self.l2_bytes = torch.cuda.get_device_properties(0).L2_cache_size
        self.stream = torch.cuda.Stream()
        self.begin, self.end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        init_humming_launcher()

    def prepare(self, n, k, ms):
        """Compiles all kernels for the shape, on all cores, and makes its weights."""
        from humming.kernel.humming import HummingKernel
        from humming.schema import HummingWeightSchema
        from humming.transform import prepare_layer_config
        from humming.tune import get_heuristics_config
        from humming.utils.cpu import get_parallel_build_workers
        torch = self.torch
        self.kernels, self.weights = {}, []
        schema = HummingWeightSchema(b_dtype="uint4", bs_dtype="bfloat16", weight_scale_group_size=GROUP)
        layer = prepare_layer_config(shape_n=n, shape_k=k, weight_schema=schema, pad_n_to_multiple=PAD_N,
                                     pad_k_to_multiple=PAD_K, torch_dtype=torch.bfloat16, device=0)
        try:
            intervals = get_heuristics_config(layer, device=0)
        except (AssertionError, ValueError) as error:
            print(f"humming: its heuristics have nothing for {n}x{k}: {error!r}", file=sys.stderr)
            return
        configs = {}
        for m in ms:
            config = config_for(intervals, m)
            both = [config] if self.pdl == "default" or config.get("use_pdl") else [config, config | {"use_pdl": True}]
            self.kernels[m] = [json.dumps(one) for one in both]
            configs |= dict.fromkeys(self.kernels[m])

        def compile_one(text):
            try:
                return HummingKernel.prepare_kernels(layer.to_str(), None, text, 0)
            except Exception as error:  # whatever a compiler or an assertion of the package says
                return error

        with concurrent.futures.ThreadPoolExecutor(get_parallel_build_workers()) as pool:
            configs = dict(zip(configs, pool.map(compile_one, configs)))
        self.kernels = {m: [(json.loads(text), configs[text]) for text in texts] for m, texts in self.kernels.items()}
        self._load(n, k, layer, max(ms))

    def _load(self, n, k, layer, max_m):
        from humming import ops
        from humming.transform import transform_humming_tensors
        torch = self.torch
        self.n, self.k = n, k
        random = torch.Generator(device="cuda").manual_seed(1)
        padded_n, padded_k = padded(n, k)
        # The distribution of bench/random_data.cc: codes as rounding Gaussian weights gives them, all 16 of them.
        codes = torch.full((padded_n, padded_k), 8, dtype=torch.int32, device="cuda")
        codes[:n, :k] = (torch.randn(n, k, device="cuda", generator=random) * 2.7 + 8).round_().clamp_(0, 15)
        scale = torch.zeros(padded_n, padded_k // GROUP, dtype=torch.bfloat16, device="cuda")
        scale[:n] = 0.01 + 0.02 * torch.rand(n, padded_k // GROUP, device="cuda", generator=random)
        self.codes, self.scale = codes[:n, :k].to(torch.int8), scale[:n].clone()
        packed = {"weight": ops.pack_weight(codes, 4), "weight_scale": scale}
        del codes
        tensors = transform_humming_tensors(layer, packed, already_padded=True)
        size = sum(tensor.nbytes for tensor in tensors.values())
        copies = max(2, 3 * self.l2_bytes // size + 1)
        self.weights = [{name: tensor.clone() for name, tensor in tensors.items()} for _ in range(copies)]
        # A layer has its own, since its launches may run beside another layer's.
        self.locks = [torch.zeros(2048, dtype=torch.int32, device="cuda") for _ in range(copies)]
        self.act = torch.randn(max_m, k, device="cuda", generator=random).to(torch.bfloat16)
        self.out = torch.empty(max_m, n, dtype=torch.bfloat16, device="cuda")
        torch.cuda.synchronize()
        torch.cuda.empty_cache()

    def _launch(self, kernel, m, copy):
        from humming import ops
        weight = self.weights[copy % len(self.weights)]
        ops.launch_kernel(configs=kernel, inputs=self.act[:m], weight=weight["weight"], weight_scale=weight["weight_scale"],
                          outputs=self.out[:m], locks=self.locks[copy % len(self.weights)])

    def _check(self, kernel, m):
        """Outputs of one launch into NaN against the float64 product, for some of the tokens."""
        torch = self.torch
        self.out.fill_(float("nan"))
        with torch.cuda.stream(self.stream):
            self.stream.wait_stream(torch.cuda.default_stream())
            self._launch(kernel, m, 0)
        self.stream.synchronize()
        if not bool(torch.isfinite(self.out[:m]).all()):
            raise PeerError("outputs were not written, or are not finite")
        tokens = sorted({i * (m - 1) // max(1, CHECKED_TOKENS - 1) for i in range(CHECKED_TOKENS)})
        act = self.act[tokens].double()
        want = torch.empty(len(tokens), self.n, dtype=torch.float64, device="cuda")
        for first in range(0, self.n, 8192):
            rows = slice(first, first + 8192)
            scale = self.scale[rows].double().repeat_interleave(GROUP, dim=1)[:, :self.k]
            want[:, rows] = act @ ((self.codes[rows].double() - 8) * scale).T
        error = (self.out[tokens].double() - want).abs()
        rms = want.square().mean(dim=1, keepdim=True).sqrt()
        whole = float((error.square().mean(dim=1, keepdim=True).sqrt() / rms).max())
        worst = float((error / rms).max())
        if not (whole <= LARGEST_ERROR and worst <= LARGEST_ELEMENT_ERROR):
            raise PeerError(f"wrong: a token's error is {whole:.2g} of its rms, an element's {worst:.2g}; nothing was timed")

    def _capture(self, kernel, m, launches):
        # Not torch.cuda.graph(): it collects garbage and empties the cache each time, which takes longer than measuring.
        graph = self.torch.cuda.CUDAGraph()
        with self.torch.cuda.stream(self.stream):
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                for copy in range(launches):
                    self._launch(kernel, m, copy)
            finally:
                graph.capture_end()
        return graph

    def _replay_ms(self, graph, times=1):
        with self.torch.cuda.stream(self.stream):
            self.begin.record(self.stream)
            for _ in range(times):
                graph.replay()
            self.end.record(self.stream)
        self.stream.synchronize()
        return self.begin.elapsed_time(self.end)

    def _graph(self, kernel, m):
        """(graph of about GRAPH_MS, its launches, ms of a replay)."""
        for launches in (1, PROBE_LAUNCHES):
            probe = self._capture(kernel, m, launches)
            ms = min(self._replay_ms(probe) for _ in range(2)) / launches
            wanted = max(1, min(MAX_LAUNCHES, round(GRAPH_MS / ms)))
            if wanted <= PROBE_LAUNCHES:
                break
        graph = self._capture(kernel, m, wanted)
        return graph, wanted, self._replay_ms(graph)

    def measure(self, m, cycle, replays):
        if m not in self.kernels:
            raise PeerError("its heuristics have no kernel for the shape")
        candidates = []
        with self.torch.no_grad():
            for config, kernel in self.kernels[m]:
                if isinstance(kernel, Exception):
                    raise PeerError(f"{describe(config)} does not compile: {kernel!r}")
                self._check(kernel, m)
                graph, launches, ms = self._graph(kernel, m)
                if len(self.kernels[m]) > 1:
                    ms = statistics.median(self._after_rest(graph, 1, 10) for _ in range(3))
                candidates.append((ms / launches, graph, launches, ms, config))
            _, graph, launches, ms, config = min(candidates, key=lambda candidate: candidate[0])
            times = max(1, round(cycle["replay_ms"] / ms))
            if cycle["idle_ms"] == 0:  # without pauses the chip needs a while to reach the clock that it then keeps
                self._replay_ms(graph, times)
            us = [self._after_rest(graph, times, cycle["idle_ms"]) * 1e3 / (times * launches)
                  for _ in range(replays or cycle["replays"])]
        return Measured(us, describe(config), bool(config.get("use_pdl")))

    def _after_rest(self, graph, times, idle_ms):
        self.torch.cuda.synchronize()
        time.sleep(idle_ms / 1e3)
        return self._replay_ms(graph, times)


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog=__doc__.split("\n\n", 2)[2],
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", required=True, metavar="FILE", help="the result file to write, or to add to")
    parser.add_argument("--nybble", default=str(BENCH.parent / "build/full/nybble"), help="the command (%(default)s)")
    parser.add_argument("--set", default=str(BENCH / "shapes.txt"), help="a file of shapes and token counts (%(default)s)")
    parser.add_argument("--shape", type=shapes_of, help="these shapes instead of the set's: 28672x4096,8192x8192")
    parser.add_argument("--m", type=tokens_of, help="these token counts instead of the set's: 1,16,4096")
    parser.add_argument("--time-limit", type=float, metavar="SECONDS", help="begins nothing that would end later")
    parser.add_argument("--pdl", choices=("best", "default"), default="best",
                        help="best: also try dependent launch, which humming's default leaves off on Hopper (%(default)s)")
    parser.add_argument("--duty", choices=("auto", "idle10", "burst", "sustained"), default="auto",
                        help="as of nybble bench (%(default)s)")
    parser.add_argument("--replays", type=int, default=0, help="timed replays of each kind; 0: as the duty cycle says")
    parser.add_argument("--chunk", type=int, default=12, help="token counts measured before the other's turn (%(default)s)")
    parser.add_argument("--no-dense", action="store_true", help="leave out dense cuBLAS")
    options = parser.parse_args(arguments)
    if not os.path.exists(options.nybble):
        parser.error(f"{options.nybble} is not there: build nybble, or name it with --nybble")
    try:
        set_shapes, set_ms = read_set(options.set)
    except (OSError, ValueError, argparse.ArgumentTypeError) as error:
        parser.error(f"{options.set}: {error}")
    options.shapes, options.ms = options.shape or set_shapes, options.m or set_ms
    if options.chunk < 1:
        parser.error("--chunk must be at least 1")
    return options


def main(arguments):
    options = parse(arguments)
    command = shlex.join(["bench/peers/humming.py", *arguments])
    try:
        peer = Humming(options.pdl)
    except ImportError as error:
        raise SystemExit(f"humming: {error}; needs a GPU's torch and pip install {PACKAGE}") from None
    return run(options, peer, command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
