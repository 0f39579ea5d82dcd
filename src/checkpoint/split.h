// Tensor parallelism: which layers of a model are split how, and one rank's part of it as a checkpoint of its own.
#pragma once

#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "checkpoint/model_writer.h"
#include "nybble/convert.h"

namespace nybble::checkpoint {

enum class Split : uint8_t {
  kNone,    // whole on every rank
  kColumn,  // by output features
  kRow,     // by input features, on group boundaries
};

struct SplitPlan {
  int ranks = 1;
  std::map<std::string, Split, std::less<>> layers;

  std::vector<std::string> names(Split split) const;
  std::string recipe(int rank) const;  // "rank 0 of 2, column ..., row ..."
};

// By the options or the layers' names; refuses what cannot be split so. `config`: the model's config.json.
Result<SplitPlan> plan_split(const Checkpoint& model, const nlohmann::json& config, const SplitOptions& options);

// The rank's part of the model, which must outlive it, as must the plan.
std::unique_ptr<Checkpoint> rank_of(const Checkpoint& model, const SplitPlan& plan, int rank);

// The model at `in` and every rank's part of it.
struct Ranks {
  OpenModel model;
  std::unique_ptr<const SplitPlan> plan;           // the parts keep its address
  std::vector<std::unique_ptr<Checkpoint>> parts;  // one for each rank
  std::vector<ModelJob> jobs;                      // to write these to `out`/rank-R-of-N
};
Result<Ranks> open_ranks(const std::string& in, const std::string& out, const SplitOptions& options);

// What is split how, and where to; nothing written yet.
SplitModel outline(const Ranks& ranks);

}  // namespace nybble::checkpoint
