#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace contrastive::test {

/// The comparison of a test that came nearest to its tolerance; printed after each test.
class LargestDifference {
 public:
  struct Difference {
    std::string name;
    double error = 0, allowed = 0;
  };
  void add(const Difference& difference);

  /// One line about the comparisons since the last call; "" if there were none.
  std::string take();

 private:
  std::optional<Difference> worst_;
  int64_t count_ = 0;
};
LargestDifference& largest_difference();

}  // namespace contrastive::test
