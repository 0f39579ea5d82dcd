// Walks the packed codes: the sums of a few tokens (gemv), and a dense fp32 tile (dequantize). Included by the
// instruction-set files only; everything has internal linkage.
//
// A weight is w = (u - z) * s + b, rounded to fp32 after each of the steps subtract and multiply-add; z is 8 for
// ZeroKind::kNone and 0 for kOffset, b is 0 except for kOffset. Rows r and r + 8 of a piece own 64 contiguous bytes of
// each half, 16 words; nibble 2 b + (row half) + 4 h of word 4 l + s is input feature 16 s + 8 b + 2 l + h, so that one
// shift of the 16 words leaves 16 codes of one row, and convert.h's permute_span puts act in the same order.
#pragma once

#include "cpu/convert.h"

namespace nybble::cpu {
namespace {

constexpr bool codes_stand_as_said() {
  constexpr layout::BlockShape kShape{1, 2, 0};
  for (int row = 0; row < layout::kPieceN; ++row)
    for (int half = 0; half < 2; ++half)
      for (int s = 0; s < 4; ++s)
        for (int b = 0; b < 2; ++b)
          for (int l = 0; l < 4; ++l)
            for (int h = 0; h < 2; ++h) {
              const int k = half * kSpan + 16 * s + 8 * b + 2 * l + h;
              const int offset = half * layout::kHalfBytes + row % 8 * 64 + (4 * l + s) * 4;
              if (kShape.word_offset(row, k) != offset) return false;
              if (layout::BlockShape::code_bit(row, k) != 4 * (row / 8) + 8 * b + 16 * h) return false;
              if (layout::BlockShape::row_slot(row) != row % 8 * 2 + row / 8) return false;
            }
  return true;
}
static_assert(codes_stand_as_said());

// How the groups divide a run of 64 input features.
enum class Groups { kOnePerBlock, kOnePerSpan, kSeveralPerSpan };

// z, s and b of a piece's 16 rows, by row slot (BlockShape::row_slot). kSeveralPerSpan: four values a slot, one for
// each k16 step of the span; else one.
struct PieceParams {
  alignas(64) float zero[2][layout::kPieceN * 4];  // [span]
  alignas(64) float scale[2][layout::kPieceN * 4];
  alignas(64) float offset[2][layout::kPieceN * 4];
};

inline constexpr int kMaxGroups = layout::groups_per_block(16);

// [group][slot] to PieceParams' order.
inline void spread_groups(Groups kind, int groups, const float* from, float (*to)[layout::kPieceN * 4]) {
  if (kind != Groups::kSeveralPerSpan) {
    for (int g = 0; g < groups; ++g) std::memcpy(to[g], from + g * layout::kPieceN, layout::kPieceN * sizeof(float));
    return;
  }
  const int per_span = groups / 2;
  for (int span = 0; span < 2; ++span)
    for (int slot = 0; slot < layout::kPieceN; slot += 4) {
      const float* first = from + span * per_span * layout::kPieceN + slot;
      __m128 steps[4];
      for (int s = 0; s < 4; ++s) steps[s] = _mm_loadu_ps(first + s * per_span / 4 * layout::kPieceN);
      _MM_TRANSPOSE4_PS(steps[0], steps[1], steps[2], steps[3]);
      for (int i = 0; i < 4; ++i) _mm_storeu_ps(to[span] + (slot + i) * 4, steps[i]);
    }
}

// Constant parts of every piece: z = 8 or 0, b = 0 where the format has none.
inline void set_constants(ZeroKind kind, PieceParams& params) {
  for (int span = 0; span < 2; ++span)
    for (int i = 0; i < layout::kPieceN * 4; ++i) {
      params.zero[span][i] = kind == ZeroKind::kNone ? 8.0f : 0.0f;
      params.offset[span][i] = 0;
    }
}

template <class V> class ParamReader {
 public:
  ParamReader(const WeightRows& weight, Groups kind) : weight_(weight), kind_(kind) {}

  // Column values stand in feature order; slots alternate between the rows' halves.
  void read_column(int piece, PieceParams& params) const {
    float scales[layout::kPieceN], zeros[layout::kPieceN];
    const int first = piece * layout::kPieceN;
    read_scales(weight_.column_scales + first * scale_bytes(), layout::kPieceN, scales);
    for (int row = 0; row < layout::kPieceN; ++row) params.scale[0][row % 8 * 2 + row / 8] = scales[row];
    if (weight_.zero_kind == ZeroKind::kNone) return;
    read_zeros(weight_.column_zeros + first * zero_bytes(), layout::kPieceN, zeros);
    for (int row = 0; row < layout::kPieceN; ++row) zeros_of(params)[0][row % 8 * 2 + row / 8] = zeros[row];
  }

  void read_block(const std::byte* piece, PieceParams& params) const {
    alignas(64) float values[kMaxGroups * layout::kPieceN];
    const int count = weight_.groups * layout::kPieceN;
    const std::byte* scales = piece + layout::kPieceCodeBytes;
    read_scales(scales, count, values);
    spread_groups(kind_, weight_.groups, values, params.scale);
    if (weight_.zero_kind == ZeroKind::kNone) return;
    read_zeros(scales + count * scale_bytes(), count, values);
    spread_groups(kind_, weight_.groups, values, zeros_of(params));
  }

 private:
  int scale_bytes() const { return weight_.scale_dtype == DType::kFp32 ? 4 : 2; }
  int zero_bytes() const { return weight_.zero_kind == ZeroKind::kInt ? 1 : scale_bytes(); }
  auto zeros_of(PieceParams& params) const -> float (*)[layout::kPieceN * 4] {
    return weight_.zero_kind == ZeroKind::kOffset ? params.offset : params.zero;
  }

  void read_scales(const std::byte* from, int count, float* to) const {
    widen<V>(weight_.scale_dtype, from, to, count);
    const auto first = V::broadcast(weight_.descale[0]), second = V::broadcast(weight_.descale[1]);
    for (int i = 0; i < count; i += V::kLanes) V::store(to + i, V::mul(V::mul(V::load(to + i), first), second));
  }
  void read_zeros(const std::byte* from, int count, float* to) const {
    if (weight_.zero_kind == ZeroKind::kInt) {
      for (int i = 0; i < count; i += V::kLanes) V::store(to + i, V::widen_u8(from + i));
    } else {
      widen<V>(weight_.scale_dtype, from, to, count);
    }
  }

  const WeightRows& weight_;
  Groups kind_;
};

// The decoder of one row's span.
template <class Decoder, Groups kGroups> Decoder decoder(const PieceParams& params, int span, int slot) {
  const int table = kGroups == Groups::kOnePerBlock ? 0 : span,
            i = kGroups == Groups::kSeveralPerSpan ? 4 * slot : slot;
  return Decoder(params.zero[table] + i, params.scale[table] + i, params.offset[table] + i);
}

template <class V, Groups kGroups, bool kIntegerZero> struct DecoderOf {
  using type = typename V::template UniformDecoder<kIntegerZero>;
};
template <class V, bool kIntegerZero> struct DecoderOf<V, Groups::kSeveralPerSpan, kIntegerZero> {
  using type = typename V::template MixedDecoder<kIntegerZero>;
};

// Sums of 16 rows x kTokens as vectors of 16 partial sums, lane i of each adding the products of its own lane.
template <int kTokens> using PieceSums = float[layout::kPieceN][kTokens][16];  // [slot][token][lane]

// Products are added up in two levels, 512 input features and then those sums, so that the rounding errors of a long k
// stay near those of a short one.
inline constexpr int kChunkBlocks = 4;

// Adds the products of `blocks` blocks. `piece` and `act` are the first one's, `act` of token 0.
template <class V, Groups kGroups, bool kIntegerZero, int kTokens>
void add_chunk(const std::byte* piece, int block_bytes, int blocks, const PieceParams* params, const float* act,
               int64_t ld_act, PieceSums<kTokens>& sums) {
  using Decoder = typename DecoderOf<V, kGroups, kIntegerZero>::type;
  using Floats = typename V::Floats;
  for (int r = 0; r < 8; ++r)
    for (int lane = 0; lane < 16; lane += V::kLanes) {
      Floats low[kTokens], high[kTokens];  // rows r and r + 8
      for (int t = 0; t < kTokens; ++t) low[t] = high[t] = V::broadcast(0);
      for (int block = 0; block < blocks; ++block) {
        const std::byte* row = piece + block * block_bytes + r * 64 + lane * 4;
        const float* x = act + block * layout::kBlockK + lane;
        Decoder low_row = decoder<Decoder, kGroups>(params[block], 0, 2 * r);
        Decoder high_row = decoder<Decoder, kGroups>(params[block], 0, 2 * r + 1);
        for (int span = 0; span < 2; ++span) {
          if (kGroups != Groups::kOnePerBlock && span == 1) {
            low_row = decoder<Decoder, kGroups>(params[block], 1, 2 * r);
            high_row = decoder<Decoder, kGroups>(params[block], 1, 2 * r + 1);
          }
          auto codes = V::load_words(row + span * layout::kHalfBytes);
          V::hold(codes);
          // The same codes of the next chunk: rows stand too far apart for the hardware to see a stream.
          if (lane == 0) __builtin_prefetch(row + span * layout::kHalfBytes + kChunkBlocks * block_bytes);
          const auto step = [&]<int kShift>(const float* from) {
            const Floats w_low = low_row.template weight<kShift>(codes);
            const Floats w_high = high_row.template weight<kShift + 4>(codes);
            for (int t = 0; t < kTokens; ++t) {
              Floats value = V::load(from + t * ld_act);
              V::hold(value);
              low[t] = V::fma(w_low, value, low[t]);
              high[t] = V::fma(w_high, value, high[t]);
            }
          };
          step.template operator()<0>(x + span * kSpan);
          step.template operator()<16>(x + span * kSpan + 16);
          step.template operator()<8>(x + span * kSpan + 32);
          step.template operator()<24>(x + span * kSpan + 48);
        }
      }
      for (int t = 0; t < kTokens; ++t) {
        float *low_sum = &sums[2 * r][t][lane], *high_sum = &sums[2 * r + 1][t][lane];
        V::store(low_sum, V::add(V::load(low_sum), low[t]));
        V::store(high_sum, V::add(V::load(high_sum), high[t]));
      }
    }
}

// Lanes to one number, four slots at a time, in one fixed order whatever the instruction set.
template <int kTokens> void reduce_piece(const PieceSums<kTokens>& sums, float* out, int64_t ld_out) {
  for (int t = 0; t < kTokens; ++t)
    for (int slot = 0; slot < layout::kPieceN; slot += 4) {
      __m128 rows[4];
      for (int i = 0; i < 4; ++i) {
        const float* lanes = sums[slot + i][t];
        rows[i] = _mm_add_ps(_mm_add_ps(_mm_loadu_ps(lanes), _mm_loadu_ps(lanes + 4)),
                             _mm_add_ps(_mm_loadu_ps(lanes + 8), _mm_loadu_ps(lanes + 12)));
      }
      _MM_TRANSPOSE4_PS(rows[0], rows[1], rows[2], rows[3]);
      alignas(16) float four[4];
      _mm_store_ps(four, _mm_add_ps(_mm_add_ps(rows[0], rows[1]), _mm_add_ps(rows[2], rows[3])));
      for (int i = 0; i < 4; ++i) out[t * ld_out + (slot + i) / 2 + (slot + i) % 2 * 8] = four[i];
    }
}

template <class V, Groups kGroups, bool kIntegerZero, int kTokens>
void gemv_pieces(const GemvTask& task, int first, int end) {
  const WeightRows& weight = task.weight;
  alignas(64) PieceSums<kTokens> sums[layout::kPiecesPerBlock];
  std::memset(sums, 0, static_cast<size_t>(end - first) * sizeof sums[0]);
  const ParamReader<V> reader(weight, kGroups);
  PieceParams params[kChunkBlocks];
  for (PieceParams& block : params) set_constants(weight.zero_kind, block);
  for (int64_t chunk = 0; chunk < weight.k_blocks; chunk += kChunkBlocks) {
    const int64_t left = weight.k_blocks - chunk;
    const int blocks = left < kChunkBlocks ? static_cast<int>(left) : kChunkBlocks;
    for (int piece = first; piece < end; ++piece) {
      const std::byte* bytes = weight.blocks + chunk * weight.block_bytes + piece * weight.piece_bytes;
      for (int block = 0; block < blocks; ++block) {
        if (weight.groups == 0) {
          reader.read_column(piece, params[block]);
        } else {
          reader.read_block(bytes + block * weight.block_bytes, params[block]);
        }
      }
      add_chunk<V, kGroups, kIntegerZero, kTokens>(bytes, weight.block_bytes, blocks, params,
                                                   task.act + chunk * layout::kBlockK, task.ld_act,
                                                   sums[piece - first]);
    }
  }
  for (int piece = first; piece < end; ++piece)
    reduce_piece<kTokens>(sums[piece - first], task.sums + piece * layout::kPieceN, layout::kBlockN);
}

// Two tokens or fewer read the codes at the speed of memory and take a block whole. With more, the sums of one piece
// fit the first-level cache and those of a block do not.
template <class V, Groups kGroups, bool kIntegerZero, int kTokens> void gemv_tokens(const GemvTask& task) {
  constexpr int kStep = kTokens <= 2 ? layout::kPiecesPerBlock : 1;
  for (int piece = task.first_piece; piece < task.end_piece; piece += kStep)
    gemv_pieces<V, kGroups, kIntegerZero, kTokens>(task, piece,
                                                   piece + kStep < task.end_piece ? piece + kStep : task.end_piece);
}

template <class V, Groups kGroups, bool kIntegerZero> void gemv_groups(const GemvTask& task) {
  switch (task.tokens) {
    case 1:
      return gemv_tokens<V, kGroups, kIntegerZero, 1>(task);
    case 2:
      return gemv_tokens<V, kGroups, kIntegerZero, 2>(task);
    case 3:
      return gemv_tokens<V, kGroups, kIntegerZero, 3>(task);
    case 4:
      return gemv_tokens<V, kGroups, kIntegerZero, 4>(task);
  }
  if constexpr (V::kMaxTokens > 4) {
    switch (task.tokens) {
      case 5:
        return gemv_tokens<V, kGroups, kIntegerZero, 5>(task);
      case 6:
        return gemv_tokens<V, kGroups, kIntegerZero, 6>(task);
      case 7:
        return gemv_tokens<V, kGroups, kIntegerZero, 7>(task);
      case 8:
        return gemv_tokens<V, kGroups, kIntegerZero, 8>(task);
    }
  }
}

// The dense tile of one piece's block, rows ld_out apart.
template <class V, Groups kGroups, bool kIntegerZero>
void dequantize_piece(const std::byte* piece, const PieceParams& params, float* out, int64_t ld_out) {
  using Decoder = typename DecoderOf<V, kGroups, kIntegerZero>::type;
  for (int r = 0; r < 8; ++r)
    for (int span = 0; span < 2; ++span) {
      const Decoder low_row = decoder<Decoder, kGroups>(params, span, 2 * r);
      const Decoder high_row = decoder<Decoder, kGroups>(params, span, 2 * r + 1);
      for (int lane = 0; lane < 16; lane += V::kLanes) {
        const auto codes = V::load_words(piece + span * layout::kHalfBytes + r * 64 + lane * 4);
        float* low = out + r * ld_out + span * kSpan + lane;
        float* high = low + 8 * ld_out;
        const auto step = [&]<int kShift>(int vector) {
          V::store(low + 16 * vector, low_row.template weight<kShift>(codes));
          V::store(high + 16 * vector, high_row.template weight<kShift + 4>(codes));
        };
        step.template operator()<0>(0);
        step.template operator()<16>(1);
        step.template operator()<8>(2);
        step.template operator()<24>(3);
      }
    }
}

template <class V, Groups kGroups, bool kIntegerZero> void dequantize_groups(const TileTask& task) {
  const WeightRows& weight = task.weight;
  const ParamReader<V> reader(weight, kGroups);
  PieceParams params;
  set_constants(weight.zero_kind, params);
  for (int piece = 0; piece < layout::kPiecesPerBlock; ++piece) {
    if (weight.groups == 0) reader.read_column(piece, params);
    for (int64_t block = task.first_block; block < task.end_block; ++block) {
      const std::byte* bytes = weight.blocks + block * weight.block_bytes + piece * weight.piece_bytes;
      if (weight.groups != 0) reader.read_block(bytes, params);
      dequantize_piece<V, kGroups, kIntegerZero>(
          bytes, params,
          task.out + piece * layout::kPieceN * task.ld_out + (block - task.first_block) * layout::kBlockK, task.ld_out);
    }
  }
}

// Runs body.operator()<kGroups, kIntegerZero>() for a weight; where z is a constant 8 it counts as an integer.
template <class V, class Body> void for_format(const WeightRows& weight, const Body& body) {
  const auto with_zero = [&]<bool kIntegerZero>() {
    if (weight.groups <= 1) return body.template operator()<Groups::kOnePerBlock, kIntegerZero>();
    if (weight.groups == 2) return body.template operator()<Groups::kOnePerSpan, kIntegerZero>();
    body.template operator()<Groups::kSeveralPerSpan, kIntegerZero>();
  };
  if constexpr (V::kIntegerZeroIsCheaper) {
    if (weight.zero_kind == ZeroKind::kNone || weight.zero_kind == ZeroKind::kInt)
      return with_zero.template operator()<true>();
  }
  with_zero.template operator()<false>();
}

template <class V> void gemv(const GemvTask& task) {
  for_format<V>(task.weight, [&]<Groups kGroups, bool kIntegerZero>() { gemv_groups<V, kGroups, kIntegerZero>(task); });
}

template <class V> void dequantize(const TileTask& task) {
  for_format<V>(task.weight,
                [&]<Groups kGroups, bool kIntegerZero>() { dequantize_groups<V, kGroups, kIntegerZero>(task); });
}

}  // namespace
}  // namespace nybble::cpu
