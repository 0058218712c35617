#include "contrastive/optim/schedule.h"

#include <string>

#include <gtest/gtest.h>

#include "contrastive/core/error.h"

#include "tests/support/errors.h"

namespace contrastive::optim {
namespace {

std::string error_of(const ScheduleOptions& options, double base_lr, int64_t total_steps) {
  return test::message_of<ConfigError>([&] { Schedule(options, base_lr, total_steps); });
}

TEST(ScheduleTest, WarmUpReachesTheBaseAtItsLastStep) {
  const Schedule schedule({.schedule = "constant", .warmup_steps = 4}, 1.0, 10);
  EXPECT_DOUBLE_EQ(schedule.at(0), 0.25);
  EXPECT_DOUBLE_EQ(schedule.at(3), 1.0);
  EXPECT_DOUBLE_EQ(schedule.at(4), 1.0);
  EXPECT_DOUBLE_EQ(schedule.at(9), 1.0);
}

TEST(ScheduleTest, TheCosineStartsAtTheBaseAndPassesItsHalfInTheMiddle) {
  const Schedule schedule({.schedule = "cosine"}, 2.0, 100);
  EXPECT_DOUBLE_EQ(schedule.at(0), 2.0);
  EXPECT_NEAR(schedule.at(50), 1.0, 1e-15);
  EXPECT_GT(schedule.at(99), 0.0);
}

TEST(ScheduleTest, BeyondTheRunItKeepsTheValueTheCurveEndsAt) {
  EXPECT_EQ(Schedule({.schedule = "cosine", .warmup_steps = 10}, 1.0, 100).at(100), 0.0);
  EXPECT_EQ(Schedule({.schedule = "cosine", .warmup_steps = 10}, 1.0, 100).at(1000), 0.0);
  EXPECT_DOUBLE_EQ(
      Schedule({.schedule = "constant_cooldown", .cooldown_steps = 20, .cooldown_power = 1.0, .cooldown_end_lr = 0.1},
               1.0, 100)
          .at(500),
      0.1);
  EXPECT_EQ(Schedule({.schedule = "constant"}, 1.0, 100).at(500), 1.0);
}

TEST(ScheduleTest, AWarmUpAsLongAsTheRunIsAllowed) {
  const Schedule schedule({.schedule = "cosine", .warmup_steps = 5}, 1.0, 5);
  EXPECT_DOUBLE_EQ(schedule.at(4), 1.0);
  EXPECT_EQ(schedule.at(5), 0.0);
}

TEST(ScheduleTest, TheCoolDownFallsFromTheBaseToItsEnd) {
  const Schedule schedule(
      {.schedule = "constant_cooldown", .cooldown_steps = 20, .cooldown_power = 2.0, .cooldown_end_lr = 0.2}, 1.0, 100);
  EXPECT_DOUBLE_EQ(schedule.at(79), 1.0);
  EXPECT_DOUBLE_EQ(schedule.at(80), 1.0);
  EXPECT_DOUBLE_EQ(schedule.at(90), 0.25 * 0.8 + 0.2);
  EXPECT_DOUBLE_EQ(schedule.at(100), 0.2);
}

TEST(ScheduleTest, AWarmUpFromZeroLosesTheFirstStepAndReachesTheBaseAfterItsLast) {
  const Schedule schedule({.schedule = "constant", .warmup_steps = 4, .warmup_from = "zero"}, 2.0, 10);
  EXPECT_EQ(schedule.at(0), 0.0);
  EXPECT_DOUBLE_EQ(schedule.at(3), 1.5);
  EXPECT_DOUBLE_EQ(schedule.at(4), 2.0);
}

TEST(ScheduleTest, ACoolDownMultipliesTheOtherCurves) {
  for (const auto* kind : {"cosine", "rsqrt", "linear"}) {
    const ScheduleOptions plain{.schedule = kind, .warmup_steps = 10};
    auto options = plain;
    options.cooldown_steps = 20;
    const Schedule curve(plain, 1.0, 100), cooled(options, 1.0, 100);
    EXPECT_DOUBLE_EQ(cooled.at(80), curve.at(80)) << kind;
    EXPECT_DOUBLE_EQ(cooled.at(95), curve.at(95) / 4) << kind;
    EXPECT_EQ(cooled.at(100), 0.0) << kind;
  }
}

TEST(ScheduleTest, WarmUpAndCoolDownMayOverlapWhereBothMultiply) {
  const Schedule schedule({.schedule = "constant", .warmup_steps = 10, .warmup_from = "zero", .cooldown_steps = 5}, 1.0,
                          10);
  EXPECT_DOUBLE_EQ(schedule.at(8), 0.8 * 0.4);
}

TEST(ScheduleTest, TheLineEndsAtItsShareOfTheBase) {
  const Schedule line({.schedule = "linear", .end = 0.1}, 2.0, 10);
  EXPECT_DOUBLE_EQ(line.at(5), 2 * 0.55);
  EXPECT_DOUBLE_EQ(line.at(10), 0.2);
  const Schedule square({.schedule = "polynomial", .power = 2}, 2.0, 10);
  EXPECT_DOUBLE_EQ(square.at(5), 0.5);
}

TEST(ScheduleTest, TheInverseRootHalvesItsSquareAfterTheTimescale) {
  const Schedule schedule({.schedule = "rsqrt", .warmup_steps = 10, .timescale = 20}, 1.0, 100);
  EXPECT_DOUBLE_EQ(schedule.at(10), 1.0);
  EXPECT_NEAR(schedule.at(30) * schedule.at(30), 0.5, 1e-15);
}

TEST(ScheduleTest, StairsKeepTheirLastMultiplier) {
  const Schedule schedule({.schedule = "stair", .stair_steps = {2, 5}, .stair_multipliers = {0.5, 0.1}}, 4.0, 10);
  EXPECT_EQ(schedule.at(1), 4.0);
  EXPECT_EQ(schedule.at(2), 2.0);
  EXPECT_DOUBLE_EQ(schedule.at(1000), 0.4);
}

TEST(ScheduleTest, WrongSettingsAreNamed) {
  EXPECT_EQ(error_of({.schedule = "cosin"}, 1.0, 10),
            "[schedule] expected constant, cosine, constant_cooldown, linear, polynomial, rsqrt or stair, found cosin");
  EXPECT_EQ(error_of({.warmup_steps = 11}, 1.0, 10),
            "[schedule] warmup_steps must be in [0, 10] (the steps of the run), but is 11");
  EXPECT_EQ(error_of({.warmup_from = "one"}, 1.0, 10), "[schedule] warmup_from must be first_step or zero, but is one");
  EXPECT_EQ(error_of({.schedule = "constant_cooldown", .cooldown_steps = 12}, 1.0, 10),
            "[schedule] cooldown_steps must be in [0, 10] (the steps of the run), but is 12");
  EXPECT_EQ(error_of({.cooldown_steps = 5, .cooldown_power = 0.0}, 1.0, 10),
            "[schedule] cooldown_power must be above 0, but is 0");
  EXPECT_EQ(error_of({}, -1.0, 10), "[schedule] lr must be at least 0, but is -1");
  EXPECT_EQ(error_of({.timescale = 0}, 1.0, 10), "[schedule] timescale must be above 0, but is 0");
  EXPECT_EQ(error_of({.stair_steps = {1}}, 1.0, 10), "[schedule] there are 1 stair_steps, but 0 stair_multipliers");
  EXPECT_EQ(error_of({.stair_steps = {2, 2}, .stair_multipliers = {1, 1}}, 1.0, 10),
            "[schedule] stair_steps must be ascending");
}

}  // namespace
}  // namespace contrastive::optim
