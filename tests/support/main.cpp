// gtest_main, except that a run in which every test was skipped exits with 77, which ctest shows as "Skipped", and that
// tests which compare tensors print how near they came to their tolerance.
#include <iostream>

#include <gtest/gtest.h>

#include "tests/support/differences.h"

namespace {

class DifferencePrinter : public ::testing::EmptyTestEventListener {
  void OnTestEnd(const ::testing::TestInfo&) override {
    const auto line = contrastive::test::largest_difference().take();
    if (!line.empty()) std::cout << "             " << line << "\n";
  }
};

}  // namespace

int main(int argc, char** argv) {
  constexpr int kSkipped = 77;
  ::testing::InitGoogleTest(&argc, argv);
  ::testing::UnitTest::GetInstance()->listeners().Append(new DifferencePrinter);  // owned by the list
  const int status = RUN_ALL_TESTS();
  const auto& run = *::testing::UnitTest::GetInstance();
  const bool only_skipped = run.skipped_test_count() > 0 && run.skipped_test_count() == run.test_to_run_count();
  return status == 0 && only_skipped ? kSkipped : status;
}
