#include "contrastive/core/error.h"

#include <fmt/format.h>

namespace contrastive::detail {

void fail_internal_assert(const char* condition, const char* file, int line) {
  throw Error(
      fmt::format("[internal] {} does not hold ({}:{}); this is a bug in libcontrastive", condition, file, line));
}

}  // namespace contrastive::detail
