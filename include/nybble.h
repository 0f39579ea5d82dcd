// nybble for C and for everything that calls C: quantize, pack, plan, launch. C11, and C++ as well.
//
// Functions that can fail return a nybble_status, set nybble_last_error() when it is not NYBBLE_OK, and leave what they
// were to write untouched then. No exception crosses this border. Handles are opaque; whoever gets one through an `out`
// parameter destroys it, and destroying NULL does nothing. A handle may be read by many threads at once.
//
// Structs begin with `size`, which the caller sets to sizeof the struct: so they can grow at their end, and programs
// and libraries of different age still understand each other. A struct of zeros behind its `size` is a valid set of
// defaults; `reserved` fields stay 0.
#ifndef NYBBLE_H
#define NYBBLE_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#pragma GCC visibility push(default)
#endif
#ifdef __cplusplus
extern "C" {
#endif

typedef enum nybble_status {
  NYBBLE_OK = 0,
  NYBBLE_INVALID_ARGUMENT = 1,     // the request is wrong: a shape, a pointer, an option
  NYBBLE_UNSUPPORTED = 2,          // well formed, but nothing here can do it; the error says what can be done
  NYBBLE_INVALID_DATA = 3,         // a file or weight breaks its format's rules
  NYBBLE_IO = 4,                   // the operating system refused
  NYBBLE_CUDA = 5,                 // a CUDA call failed
  NYBBLE_OUT_OF_MEMORY = 6,        // host or device memory
  NYBBLE_WORKSPACE_TOO_SMALL = 7,  // nybble_launch_args.workspace_bytes is below nybble_plan_workspace_bytes()
  NYBBLE_INTERNAL = 8              // a fault of nybble's own
} nybble_status;

// "ok", "invalid_argument" and so on; "unknown" for a number that is no status.
const char* nybble_status_string(nybble_status status);

// What the last call that failed on this thread had to say: what was asked, what is allowed, what to do. "" before the
// first one. Valid until the next call that fails on this thread; calls that succeed leave it alone.
const char* nybble_last_error(void);

// The library's version, "0.1.0".
const char* nybble_version(void);

typedef int32_t nybble_dtype;
enum { NYBBLE_BF16 = 0, NYBBLE_FP16 = 1, NYBBLE_FP32 = 2 };

// How a code u (0..15) becomes a weight w, given the scale s of its group.
typedef int32_t nybble_zero_kind;
enum {
  NYBBLE_ZERO_NONE = 0,    // w = (u - 8) * s
  NYBBLE_ZERO_INT = 1,     // w = (u - z) * s, z an integer 0..16
  NYBBLE_ZERO_FLOAT = 2,   // w = (u - z) * s, z of the scale's type
  NYBBLE_ZERO_OFFSET = 3,  // w = u * s + b,   b of the scale's type
  NYBBLE_ZERO_TABLE = 4    // w = table[u] * s: not packed and not multiplied yet, every call refuses it
};

// group_size of a weight that has one scale per output feature.
enum { NYBBLE_PER_COLUMN = 0 };

// Weights ----------------------------------------------------------------------------------------------------------

// A dense weight, row-major.
typedef struct nybble_dense {
  size_t size;
  const char* name;    // for error texts; may be NULL
  int64_t n;           // output features
  int64_t k;           // input features
  const void* values;  // [n, k]
  nybble_dtype dtype;  // of values
  int32_t reserved;
} nybble_dense;

// A quantized weight as plain arrays. Groups run along k, the last may be partial: groups = ceil(k / group_size).
typedef struct nybble_arrays {
  size_t size;
  const char* name;          // for error texts; may be NULL
  int64_t n;                 // output features
  int64_t k;                 // input features
  int32_t group_size;        // input features per scale, or NYBBLE_PER_COLUMN
  nybble_dtype scale_dtype;  // of scales
  nybble_zero_kind zero_kind;
  int32_t reserved;
  const uint8_t* codes;    // [n, k], 0..15, one a byte
  const void* scales;      // [n, groups]
  const void* zeros;       // [n, groups]: uint8_t for ZERO_INT, the scales' type for ZERO_FLOAT and ZERO_OFFSET
  const int32_t* k_order;  // [k]: the input feature at each sorted position (GPTQ's act-order); NULL: as they stand
} nybble_arrays;

// A quantized weight that the library owns.
typedef struct nybble_weight nybble_weight;

// Lends the weight's arrays; they live as long as the handle. The caller has set out->size.
nybble_status nybble_weight_view(const nybble_weight* weight, nybble_arrays* out);
void nybble_weight_destroy(nybble_weight* weight);

typedef int32_t nybble_range_search;
enum {
  NYBBLE_RANGE_FULL = 0,          // absmax (symmetric) or min..max (asymmetric)
  NYBBLE_RANGE_SQUARED_ERROR = 1  // the shrunken range with the least squared error
};

typedef struct nybble_rtn_options {
  size_t size;
  int32_t group_size;  // NYBBLE_PER_COLUMN or a multiple of 16
  int32_t asymmetric;  // not 0: integer zero points
  nybble_range_search range_search;
  nybble_dtype scale_dtype;
  int32_t num_threads;  // 0: all cores
  int32_t reserved;
} nybble_rtn_options;

// Round to nearest, on the CPU. `options` may be NULL: symmetric, group_size 128, bf16 scales.
nybble_status nybble_quantize_rtn(const nybble_dense* dense, const nybble_rtn_options* options, nybble_weight** out);

typedef struct nybble_pack_options {
  size_t size;
  const nybble_dtype* scale_dtype;  // type of the scales in the packed form; NULL: as given
  int32_t num_threads;              // 0: all cores
  int32_t reserved;
} nybble_pack_options;

// The form that kernels read: one blob, the same bytes in host memory, on the GPU and in a file.
typedef struct nybble_packed nybble_packed;

// The bytes of the packed form. Looks at shape and format only, and at k_order only for whether there is one: the other
// pointers may be NULL. `options` may be NULL, here and below.
nybble_status nybble_packed_bytes(const nybble_arrays* arrays, const nybble_pack_options* options, size_t* out);
nybble_status nybble_pack(const nybble_arrays* arrays, const nybble_pack_options* options, nybble_packed** out);
// Into the caller's memory of at least nybble_packed_bytes(). A launch wants it at a 128-byte boundary.
nybble_status nybble_pack_into(const nybble_arrays* arrays, const nybble_pack_options* options, void* memory,
                               size_t memory_bytes);
nybble_status nybble_unpack(const nybble_packed* packed, nybble_weight** out);

// Checks magic, layout version, sizes and checksum of a packed blob in memory; the second copies it into a handle, too.
nybble_status nybble_packed_validate(const void* blob, size_t blob_bytes);
nybble_status nybble_packed_copy(const void* blob, size_t blob_bytes, nybble_packed** out);

// Checked read and atomic write of a packed file.
nybble_status nybble_packed_load(const char* path, nybble_packed** out);
nybble_status nybble_packed_save(const nybble_packed* packed, const char* path);

const void* nybble_packed_data(const nybble_packed* packed);  // at a 128-byte boundary; NULL for NULL
size_t nybble_packed_size_bytes(const nybble_packed* packed);
void nybble_packed_destroy(nybble_packed* packed);

// Multiplication: problem (asked), plan (chosen), launch (nothing left to decide) ------------------------------------

// out[m, n] = alpha * act[m, k] x weight[n, k]^T + bias[n] + residual[m, n]
typedef struct nybble_problem {
  size_t size;
  int64_t m;  // tokens
  int64_t n;  // output features
  int64_t k;  // input features
  nybble_dtype act_dtype;
  nybble_dtype out_dtype;
  nybble_dtype scale_dtype;
  nybble_zero_kind zero_kind;
  int32_t group_size;   // or NYBBLE_PER_COLUMN
  int32_t k_order;      // not 0: the weight has one
  int32_t wide_scales;  // not 0: pack found scales outside the range of the quickest kernels
  int32_t layout;       // of the packed weight; 0: the one that this library packs
  int32_t bias;         // not 0: launches give one
  int32_t residual;     // not 0: launches give one
  int32_t unaligned;    // not 0: rows of act and out may begin off 16-byte boundaries; fewer kernels can do that
  int32_t reserved;
} nybble_problem;

// The problem of multiplying m contiguous tokens by this weight, out of the same type as act. out->size is set, here
// and below.
nybble_status nybble_packed_problem(const nybble_packed* packed, int64_t m, nybble_dtype act_dtype,
                                    nybble_problem* out);
// From its line of text, "m16 n4096 k4096 bf16 g128", and back. `*text_bytes` is what the text takes with its final
// zero; with a NULL text only that is written, and a buffer_bytes below it is an error.
nybble_status nybble_problem_parse(const char* text, nybble_problem* out);
nybble_status nybble_problem_text(const nybble_problem* problem, char* text, size_t buffer_bytes, size_t* text_bytes);

// What a plan is made for.
typedef struct nybble_device nybble_device;

nybble_status nybble_device_cpu(int32_t num_threads, nybble_device** out);  // 0: all cores
nybble_status nybble_device_cuda(int32_t ordinal, nybble_device** out);     // NYBBLE_UNSUPPORTED where there is none
nybble_status nybble_device_h200(nybble_device** out);  // a description to plan for, without the GPU
const char* nybble_device_name(const nybble_device* device);
void nybble_device_destroy(nybble_device* device);

// Measured times to choose kernels by, as `nybble tune` writes them.
typedef struct nybble_tuning_table nybble_tuning_table;

nybble_status nybble_tuning_table_load(const char* path, nybble_tuning_table** out);
// Without measurements: plans made with it rest on the cost model alone.
nybble_status nybble_tuning_table_empty(nybble_tuning_table** out);
size_t nybble_tuning_table_num_problems(const nybble_tuning_table* table);
// Kernels it names and this library lacks, because it is of another version; their times are ignored.
size_t nybble_tuning_table_num_unknown(const nybble_tuning_table* table);
void nybble_tuning_table_destroy(nybble_tuning_table* table);

typedef struct nybble_plan_options {
  size_t size;
  const char* kernel;  // force this kernel by name; NULL: choose
  int32_t no_pdl;      // not 0: a launch waits for its predecessor's end (no programmatic dependent launch)
  int32_t reserved;
  const nybble_tuning_table*
      table;  // choose by it, on the device it was measured on; NULL: by what ships for the device
} nybble_plan_options;

// An immutable choice. It keeps nothing of the problem, device and options that it was made from.
typedef struct nybble_plan nybble_plan;

nybble_status nybble_plan_create(const nybble_problem* problem, const nybble_device* device,
                                 const nybble_plan_options* options, nybble_plan** out);  // options may be NULL
const char* nybble_plan_kernel(const nybble_plan* plan);  // its name; lives as long as the plan, as the next one
const char* nybble_plan_why(const nybble_plan* plan);     // one line: why this kernel
size_t nybble_plan_workspace_bytes(const nybble_plan* plan);
void nybble_plan_destroy(nybble_plan* plan);

typedef struct nybble_launch_args {
  size_t size;
  const void* act;            // [m, k]
  int64_t ld_act;             // elements between rows; 0: k
  const void* weight;         // a packed blob: device memory for a CUDA plan, host memory for a CPU plan
  void* out;                  // [m, n]
  int64_t ld_out;             // elements between rows; 0: n
  const void* bias;           // [n], of act's type; given exactly when the problem has one
  const void* residual;       // [m, n], of out's type, ld_out between rows; given exactly when the problem has one
  const float* alpha;         // in host memory, read during the call; NULL: 1
  const float* alpha_device;  // read by the kernel when it runs; NULL: `alpha` counts
  void* workspace;            // on a GPU 256-byte aligned; needs no initial state; each launch in flight has its own
  size_t workspace_bytes;     // at least nybble_plan_workspace_bytes()
  void* stream;               // a cudaStream_t, for CUDA plans
} nybble_launch_args;

// Checks the arguments, then runs (CPU) or enqueues (CUDA; may be captured into a CUDA graph).
nybble_status nybble_launch(const nybble_plan* plan, const nybble_launch_args* args);

#ifdef __cplusplus
}  // extern "C"
#endif
#if defined(__GNUC__)
#pragma GCC visibility pop
#endif

#endif  // NYBBLE_H
