#include "contrastive/optim/schedule.h"

#include <string>

#include <gtest/gtest.h>

#include "contrastive/core/error.h"

namespace contrastive::optim {
namespace {

template <typename... Args>
std::string error_of(Args... args) {
  try {
    Schedule schedule(args...);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "";
}

TEST(ScheduleTest, WarmUpReachesTheBaseAtItsLastStep) {
  const Schedule schedule("constant", 1.0, 4, 10);
  EXPECT_DOUBLE_EQ(schedule.at(0), 0.25);
  EXPECT_DOUBLE_EQ(schedule.at(3), 1.0);
  EXPECT_DOUBLE_EQ(schedule.at(4), 1.0);
  EXPECT_DOUBLE_EQ(schedule.at(9), 1.0);
}

TEST(ScheduleTest, TheCosineStartsAtTheBaseAndPassesItsHalfInTheMiddle) {
  const Schedule schedule("cosine", 2.0, 0, 100);
  EXPECT_DOUBLE_EQ(schedule.at(0), 2.0);
  EXPECT_NEAR(schedule.at(50), 1.0, 1e-15);
  EXPECT_GT(schedule.at(99), 0.0);
}

TEST(ScheduleTest, BeyondTheRunItKeepsTheValueTheCurveEndsAt) {
  EXPECT_EQ(Schedule("cosine", 1.0, 10, 100).at(100), 0.0);
  EXPECT_EQ(Schedule("cosine", 1.0, 10, 100).at(1000), 0.0);
  EXPECT_DOUBLE_EQ(Schedule("constant_cooldown", 1.0, 0, 100, 20, 1.0, 0.1).at(500), 0.1);
  EXPECT_EQ(Schedule("constant", 1.0, 0, 100).at(500), 1.0);
}

TEST(ScheduleTest, AWarmUpAsLongAsTheRunIsAllowed) {
  const Schedule schedule("cosine", 1.0, 5, 5);
  EXPECT_DOUBLE_EQ(schedule.at(4), 1.0);
  EXPECT_EQ(schedule.at(5), 0.0);
}

TEST(ScheduleTest, TheCoolDownFallsFromTheBaseToItsEnd) {
  const Schedule schedule("constant_cooldown", 1.0, 0, 100, 20, 2.0, 0.2);
  EXPECT_DOUBLE_EQ(schedule.at(79), 1.0);
  EXPECT_DOUBLE_EQ(schedule.at(80), 1.0);
  EXPECT_DOUBLE_EQ(schedule.at(90), 0.25 * 0.8 + 0.2);
  EXPECT_DOUBLE_EQ(schedule.at(100), 0.2);
}

TEST(ScheduleTest, WrongSettingsAreNamed) {
  EXPECT_NE(error_of("cosin", 1.0, 0, 10).find("expected constant, cosine or constant_cooldown, found cosin"),
            std::string::npos);
  EXPECT_NE(error_of("cosine", 1.0, 11, 10).find("warmup_steps must be in [0, 10] (the steps of the run), but is 11"),
            std::string::npos);
  EXPECT_NE(error_of("constant_cooldown", 1.0, 0, 10, 12).find("cooldown_steps"), std::string::npos);
  EXPECT_NE(error_of("constant_cooldown", 1.0, 0, 10, 5, 0.0).find("cooldown_power"), std::string::npos);
  EXPECT_NE(error_of("constant", -1.0, 0, 10).find("lr must be at least 0, but is -1"), std::string::npos);
}

}  // namespace
}  // namespace contrastive::optim
