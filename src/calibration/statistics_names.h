// How the statistics file spells things: its one home, for reader and writer.
#pragma once

namespace nybble::calibration {

inline constexpr char kHessian[] = ".hessian";         // F32 [k, k]
inline constexpr char kMeanSquare[] = ".mean_square";  // F32 [k]
inline constexpr char kFormatKey[] = "nybble.statistics";
inline constexpr char kFormatValue[] = "1";
inline constexpr char kTokensPrefix[] = "tokens.";         // + layer: how many tokens, in decimal
inline constexpr char kSameInputPrefix[] = "same_input.";  // + layer: the layer whose tensors hold for this one

}  // namespace nybble::calibration
