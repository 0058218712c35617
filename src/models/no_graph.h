#pragma once

#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>

namespace contrastive::models::detail {

/// Throws: Error if a graph of the gradients is being built, which our own backward passes don't give.
inline void require_no_graph(const char* what) {
  TORCH_CHECK(!c10::GradMode::is_enabled(), "[", what, "] gradients of gradients (create_graph) are not implemented");
}

}  // namespace contrastive::models::detail
