// compressed-tensors "pack-quantized": the words that its reader and its writer share. For a layer of n x k, G groups:
//   weight_packed      I32 [n, ceil(k / 8)]   code of (n, k) in nibble k % 8 of word k / 8
//   weight_scale       float [n, G]
//   weight_shape       I64 [2]                n, k
//   weight_zero_point  I32 [ceil(n / 8), G]   asymmetric only: zero of (n, group) in nibble n % 8 of word [n /
//   8][group] weight_g_idx       I32 [k]                the group of each input feature; older files with actorder
//   "group" only
// Codes and zeros are signed numbers stored + 8, so their difference is that of the stored numbers: the canonical form.
// "nvfp4-pack-quantized" and "mxfp4-pack-quantized" hold E2M1 codes (fp4.h), two a byte, the low nibble first:
//   weight_packed        U8 [n, k / 2]
//   weight_scale         F8_E4M3 [n, k / 16], or U8 [n, k / 32] in E8M0
//   weight_global_scale  F32 [1]              NVFP4 only: the scale of a group is weight_scale / weight_global_scale
// Experts in one tensor have one more dimension in front of each of these, and three numbers in weight_shape.
#pragma once

namespace nybble::checkpoint {

inline constexpr char kWeightPacked[] = ".weight_packed";
inline constexpr char kWeightScale[] = ".weight_scale";
inline constexpr char kWeightShape[] = ".weight_shape";
inline constexpr char kWeightZeroPoint[] = ".weight_zero_point";
inline constexpr char kWeightGroupIndex[] = ".weight_g_idx";
inline constexpr char kWeightGlobalScale[] = ".weight_global_scale";

inline constexpr char kQuantMethod[] = "compressed-tensors";
inline constexpr char kPackQuantized[] = "pack-quantized";
inline constexpr char kNvfp4PackQuantized[] = "nvfp4-pack-quantized";
inline constexpr char kMxfp4PackQuantized[] = "mxfp4-pack-quantized";
inline constexpr char kMixedPrecision[] = "mixed-precision";  // each config group names its own format

inline constexpr int kNvfp4Group = 16, kMxfp4Group = 32;

}  // namespace nybble::checkpoint
