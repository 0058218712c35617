#pragma once

#include <cstdint>
#include <future>

namespace contrastive::eval::detail {

/// Calls use(make(i)) for i in [0, count) in order; make(i + 1) runs on another thread meanwhile.
template <typename Make, typename Use>
void pipeline(int64_t count, const Make& make, const Use& use) {
  if (count == 0) return;
  auto next = std::async(std::launch::deferred, make, int64_t{0});
  for (int64_t i = 0; i < count; ++i) {
    const auto current = next.get();
    if (i + 1 < count) next = std::async(std::launch::async, make, i + 1);
    use(current);
  }
}

}  // namespace contrastive::eval::detail
