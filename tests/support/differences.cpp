#include "tests/support/differences.h"

#include <utility>

#include <fmt/format.h>

namespace contrastive::test {

LargestDifference& largest_difference() {
  static LargestDifference largest;
  return largest;
}

void LargestDifference::add(const Difference& difference) {
  ++count_;
  const auto share = [](const Difference& d) { return d.allowed > 0 ? d.error / d.allowed : d.error; };
  if (!worst_ || share(difference) > share(*worst_)) worst_ = difference;
}

std::string LargestDifference::take() {
  const auto worst = std::exchange(worst_, std::nullopt);
  const auto count = std::exchange(count_, 0);
  if (!worst) return "";
  if (worst->allowed == 0) return fmt::format("{} tensors compared, equal", count);
  return fmt::format("{} tensors compared, nearest to its tolerance: {}, error {:.2g} of {:.2g} ({:.1f} %)", count,
                     worst->name, worst->error, worst->allowed, 100 * worst->error / worst->allowed);
}

}  // namespace contrastive::test
