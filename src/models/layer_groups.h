#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "contrastive/models/tower.h"

namespace contrastive::models::detail {

/// Layer groups of a tower of `blocks` blocks: what comes before them, and one for each.
inline int64_t num_block_groups(int64_t blocks) {
  return blocks + 1;
}

/// The group of a tensor whose name may start with `blocks_prefix` and the block's number; `is_last`: it stands behind
/// the blocks.
inline int64_t block_group(std::string_view name, std::string_view blocks_prefix, bool is_last, int64_t blocks) {
  if (name.starts_with(blocks_prefix)) return 1 + std::stoll(std::string(name.substr(blocks_prefix.size())));
  return is_last ? blocks : 0;
}

}  // namespace contrastive::models::detail
