// gtest_main, except that a run in which every test was skipped exits with 77, which ctest shows as "Skipped".
#include <gtest/gtest.h>

int main(int argc, char** argv) {
  constexpr int kSkipped = 77;
  ::testing::InitGoogleTest(&argc, argv);
  const int status = RUN_ALL_TESTS();
  const auto& run = *::testing::UnitTest::GetInstance();
  const bool only_skipped = run.skipped_test_count() > 0 && run.skipped_test_count() == run.test_to_run_count();
  return status == 0 && only_skipped ? kSkipped : status;
}
