// Rows of the registry from a family's instances: what is alike in every family of tiled kernels.
#pragma once

#include <initializer_list>
#include <memory>
#include <span>
#include <vector>

#include "kernels/kernel_launch.h"
#include "runtime/kernel_entry.h"

namespace nybble::kernels {

// What a family says of one instance.
template <class Instance> struct FamilyFunctions {
  std::string (*name)(const Instance&);
  Numerics (*numerics)(const Instance&);
  std::string (*why_not)(const Instance&, const Problem&, const Device&);
  double (*estimate_us)(const Instance&, const Problem&, const Device&);
  double (*chain_factor)(const Instance&, const Problem&);                    // null: 1
  size_t (*workspace_bytes)(const Instance&, const Problem&, const Device&);  // null: none
  Result<void> (*launch)(const Instance&, PreparedDevices&, const Problem&, const Device&, const LaunchArgs&, bool pdl);
};

// One row for each instance, in order. The instances live as long as the program.
template <class Instance>
std::vector<KernelEntry> rows_of(std::initializer_list<std::span<const Instance>> parts,
                                 const FamilyFunctions<Instance>& family) {
  std::vector<KernelEntry> rows;
  for (const std::span<const Instance> part : parts)
    for (const Instance& instance : part) {
      auto prepared = std::make_shared<PreparedDevices>();
      KernelEntry row;
      row.name = family.name(instance);
      row.device = DeviceKind::kCuda;
      row.numerics = family.numerics(instance);
      row.why_not = [&instance, family](const Problem& p, const Device& d) { return family.why_not(instance, p, d); };
      row.estimate_us = [&instance, family](const Problem& p, const Device& d) {
        return family.estimate_us(instance, p, d);
      };
      if (family.chain_factor != nullptr)
        row.chain_factor = [&instance, family](const Problem& p) { return family.chain_factor(instance, p); };
      row.workspace_bytes = [&instance, family](const Problem& p, const Device& d) {
        return family.workspace_bytes == nullptr ? size_t{0} : family.workspace_bytes(instance, p, d);
      };
      row.launch = [&instance, family, prepared](const Problem& p, const Device& d, const LaunchArgs& args, bool pdl) {
        return family.launch(instance, *prepared, p, d, args, pdl);
      };
      rows.push_back(std::move(row));
    }
  return rows;
}

}  // namespace nybble::kernels
