#!/usr/bin/env python3
"""A 4-bit linear layer from Python's standard library alone: ctypes over nybble.h, on the CPU.

    ctypes_linear.py [PATH/TO/libnybble.so]
"""
import ctypes
import random
import struct
import sys
from ctypes import byref, c_char_p, c_float, c_int32, c_int64, c_size_t, c_void_p

BF16, FP16, FP32 = range(3)


class Struct(ctypes.Structure):
    """A struct of nybble.h: its first field is its size, what is not named is 0."""

    def __init__(self, **fields):
        super().__init__(size=ctypes.sizeof(self), **fields)


class Dense(Struct):
    _fields_ = [("size", c_size_t), ("name", c_char_p), ("n", c_int64), ("k", c_int64), ("values", c_void_p),
                ("dtype", c_int32), ("reserved", c_int32)]


class RtnOptions(Struct):
    _fields_ = [("size", c_size_t), ("group_size", c_int32), ("asymmetric", c_int32), ("range_search", c_int32),
                ("scale_dtype", c_int32), ("num_threads", c_int32), ("reserved", c_int32)]


class Arrays(Struct):
    _fields_ = [("size", c_size_t), ("name", c_char_p), ("n", c_int64), ("k", c_int64), ("group_size", c_int32),
                ("scale_dtype", c_int32), ("zero_kind", c_int32), ("reserved", c_int32), ("codes", c_void_p),
                ("scales", c_void_p), ("zeros", c_void_p), ("k_order", c_void_p)]


class Problem(Struct):
    _fields_ = [("size", c_size_t), ("m", c_int64), ("n", c_int64), ("k", c_int64)] + [
        (name, c_int32) for name in ("act_dtype", "out_dtype", "scale_dtype", "zero_kind", "group_size", "k_order",
                                     "wide_scales", "layout", "bias", "residual", "unaligned", "reserved")]


class LaunchArgs(Struct):
    _fields_ = [("size", c_size_t), ("act", c_void_p), ("ld_act", c_int64), ("weight", c_void_p), ("out", c_void_p),
                ("ld_out", c_int64), ("bias", c_void_p), ("residual", c_void_p), ("alpha", c_void_p),
                ("alpha_device", c_void_p), ("workspace", c_void_p), ("workspace_bytes", c_size_t),
                ("stream", c_void_p)]


class Nybble:
    """The library; calls that fail raise its error text."""

    RETURNS = {"last_error": c_char_p, "status_string": c_char_p, "version": c_char_p, "plan_kernel": c_char_p,
               "plan_why": c_char_p, "plan_workspace_bytes": c_size_t, "packed_data": c_void_p,
               "packed_size_bytes": c_size_t}

    def __init__(self, path):
        self.library = ctypes.CDLL(path)

    def __getattr__(self, name):
        function = getattr(self.library, "nybble_" + name)
        function.restype = self.RETURNS.get(name, c_int32)
        if name in self.RETURNS:
            return function

        def call(*args):
            if status := function(*args):
                raise RuntimeError(f"{self.status_string(status).decode()}: {self.last_error().decode()}")

        return call

    def make(self, name, *args):
        """Calls a function whose last parameter takes a new handle, and returns the handle."""
        handle = c_void_p()
        getattr(self, name)(*args, byref(handle))
        return handle


def aligned_memory(size, boundary):
    """An address at the boundary, and the object that keeps it alive."""
    memory = ctypes.create_string_buffer(size + boundary)
    return -(-ctypes.addressof(memory) // boundary) * boundary, memory


def main(path="libnybble.so"):
    nybble = Nybble(path)
    m, n, k, group_size = 4, 64, 256, 128

    # Weights are whole multiples of 1/64 from -7/64 to 7/64, and 7.5/64 once a group: quantizing finds the scale 1/64
    # and the multiples themselves (7 for the 7.5), so that the result can be compared exactly.
    random.seed(1)
    levels = [[7 if i % group_size == 0 else random.randint(-7, 7) for i in range(k)] for _ in range(n)]
    values = [(7.5 if i % group_size == 0 else level) / 64 for row in levels for i, level in enumerate(row)]
    floats = (c_float * (n * k))(*values)
    dense = Dense(name=b"example", n=n, k=k, values=ctypes.addressof(floats), dtype=FP32)
    weight = nybble.make("quantize_rtn", byref(dense), byref(RtnOptions(group_size=group_size, scale_dtype=FP16)))
    arrays = Arrays()
    nybble.weight_view(weight, byref(arrays))
    packed = nybble.make("pack", byref(arrays), None)
    print(f"nybble {nybble.version().decode()}: {n} x {k} weights, {4 * n * k} bytes of fp32, "
          f"{nybble.packed_size_bytes(packed)} packed")

    problem = Problem()
    nybble.packed_problem(packed, c_int64(m), FP16, byref(problem))
    problem.out_dtype = FP32
    cpu = nybble.make("device_cpu", 0)
    plan = nybble.make("plan_create", byref(problem), cpu, None)
    print(f"{nybble.plan_kernel(plan).decode()}: {nybble.plan_why(plan).decode()}")

    act = [[random.randint(-4, 4) for _ in range(k)] for _ in range(m)]
    act_address, act_memory = aligned_memory(2 * m * k, 16)
    ctypes.memmove(act_address, struct.pack(f"{m * k}e", *(x for row in act for x in row)), 2 * m * k)
    out_address, out_memory = aligned_memory(4 * m * n, 16)
    workspace_bytes = nybble.plan_workspace_bytes(plan)
    workspace_address, workspace_memory = aligned_memory(workspace_bytes, 256)
    nybble.launch(plan, byref(LaunchArgs(act=act_address, weight=nybble.packed_data(packed), out=out_address,
                                         workspace=workspace_address, workspace_bytes=workspace_bytes)))

    out = (c_float * (m * n)).from_address(out_address)
    want = [sum(x * level for x, level in zip(row, column)) / 64 for row in act for column in levels]
    wrong = sum(got != expected for got, expected in zip(out, want))
    print(f"out[0, :4] = {list(out[:4])}; {m * n - wrong} of {m * n} numbers are exact")

    for destroy, handle in (("plan", plan), ("packed", packed), ("weight", weight), ("device", cpu)):
        getattr(nybble.library, f"nybble_{destroy}_destroy")(handle)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
