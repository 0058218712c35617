#pragma once

#include <string>

#include "contrastive/core/error.h"
#include "contrastive/distributed/process_group.h"

namespace contrastive::eval::detail {

/// Runs a part of the work in which ranks don't meet. If it fails on some of them, all throw the first one's message,
/// so that none waits for a rank that has given up. Every rank must call this.
template <typename Work>
void agree(const distributed::ProcessGroup& group, const Work& work) {
  if (group.is_alone()) {
    work();
    return;
  }
  std::string message;
  try {
    work();
  } catch (const Error& error) {
    message = error.what();
  }
  for (const auto& each : group.all_gather_text(message)) {
    if (!each.empty()) throw DataError(each);
  }
}

}  // namespace contrastive::eval::detail
