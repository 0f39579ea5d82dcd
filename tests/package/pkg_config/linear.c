// find_package/linear.cc again, through the C interface; there the numbers are explained.
#include <nybble.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { M = 2, N = 4, K = 16 };

static void check(nybble_status status, const char* call) {
  if (status == NYBBLE_OK) return;
  fprintf(stderr, "%s: %s: %s\n", call, nybble_status_string(status), nybble_last_error());
  exit(1);
}
#define CHECK(call) check(call, #call)

static uint16_t bf16(float value) {  // of numbers that have one
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return (uint16_t)(bits >> 16);
}

int main(int argc, char** argv) {
  if (argc != 2 || strcmp(argv[1], nybble_version()) != 0) {
    fprintf(stderr, "nybble.pc says version %s, the library %s\n", argc == 2 ? argv[1] : "nothing", nybble_version());
    return 1;
  }

  float values[N * K] = {0};
  for (int n = 0; n < N; ++n) {
    const float c = (float)(1 << n);
    values[n * K] = 3.75f * c;
    values[n * K + 1] = -3.75f * c;
    values[n * K + 2 + n] = c;
  }
  const nybble_dense dense = {
      .size = sizeof dense, .name = "tiny", .n = N, .k = K, .values = values, .dtype = NYBBLE_FP32};
  const nybble_rtn_options rtn = {.size = sizeof rtn, .group_size = 16};
  nybble_weight* weight = NULL;
  CHECK(nybble_quantize_rtn(&dense, &rtn, &weight));
  nybble_arrays arrays = {.size = sizeof arrays};
  CHECK(nybble_weight_view(weight, &arrays));
  nybble_packed* packed = NULL;
  CHECK(nybble_pack(&arrays, NULL, &packed));
  nybble_weight_destroy(weight);

  nybble_problem problem = {.size = sizeof problem};
  CHECK(nybble_packed_problem(packed, M, NYBBLE_BF16, &problem));
  problem.out_dtype = NYBBLE_FP32;
  problem.bias = 1;
  problem.unaligned = 0;
  nybble_device* cpu = NULL;
  CHECK(nybble_device_cpu(0, &cpu));
  nybble_plan* plan = NULL;
  CHECK(nybble_plan_create(&problem, cpu, NULL, &plan));
  nybble_device_destroy(cpu);
  printf("%s (%s)\n", nybble_plan_kernel(plan), nybble_plan_why(plan));

  _Alignas(16) uint16_t act[M * K];
  uint16_t bias[N];
  _Alignas(16) float out[M * N];
  for (int k = 0; k < K; ++k) act[k] = bf16(1.0f), act[K + k] = bf16((float)k);
  for (int n = 0; n < N; ++n) bias[n] = bf16((float)(n + 1));
  const size_t workspace_bytes = nybble_plan_workspace_bytes(plan);
  void* workspace = aligned_alloc(256, (workspace_bytes + 256) / 256 * 256);
  const float alpha = 2.0f;
  const nybble_launch_args args = {.size = sizeof args,
                                   .act = act,
                                   .weight = nybble_packed_data(packed),
                                   .out = out,
                                   .bias = bias,
                                   .alpha = &alpha,
                                   .workspace = workspace,
                                   .workspace_bytes = workspace_bytes};
  CHECK(nybble_launch(plan, &args));
  free(workspace);
  nybble_plan_destroy(plan);
  nybble_packed_destroy(packed);

  const float want[M * N] = {2, 4, 7, 12, -3, -2, 3, 20};
  int wrong = 0;
  for (int i = 0; i < M * N; ++i) {
    printf("out[%d, %d] = %g, by hand %g\n", i / N, i % N, out[i], want[i]);
    wrong += out[i] != want[i];
  }
  return wrong == 0 ? 0 : 1;
}
