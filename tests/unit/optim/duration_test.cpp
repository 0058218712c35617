#include "contrastive/optim/duration.h"

#include <gtest/gtest.h>

#include "contrastive/core/error.h"

#include "tests/support/errors.h"

namespace contrastive::optim {
namespace {

constexpr DurationScale kScale{.batch_size = 32, .samples_per_epoch = 640, .total_steps = 100};

int64_t steps(const std::string& text) {
  return Duration::parse(text).steps(kScale);
}

std::string parse_error(const std::string& text) {
  return test::message_of<ConfigError>([&] { Duration::parse(text); });
}

std::string steps_error(const std::string& text, const DurationScale& scale) {
  return test::message_of<ConfigError>([&] { Duration::parse(text).steps(scale); });
}

TEST(DurationTest, EveryUnitBecomesSteps) {
  EXPECT_EQ(steps("10000"), 10000);
  EXPECT_EQ(steps("1e4 steps"), 10000);
  EXPECT_EQ(steps("1 step"), 1);
  EXPECT_EQ(steps("320 samples"), 10);
  EXPECT_EQ(steps("3.2e2 examples"), 10);
  EXPECT_EQ(steps("0.5 epochs"), 10);
  EXPECT_EQ(steps("1 epoch"), 20);
  EXPECT_EQ(steps("3 %"), 3);
  EXPECT_EQ(steps(" 20% "), 20);
  EXPECT_EQ(Duration(7).steps({}), 7);
}

TEST(DurationTest, RoundsToTheNearestStepButKeepsAtLeastOne) {
  EXPECT_EQ(steps("80 samples"), 2);   // 2.5, to even
  EXPECT_EQ(steps("112 samples"), 4);  // 3.5, to even
  EXPECT_EQ(steps("90 samples"), 3);
  EXPECT_EQ(steps("1 sample"), 1);
  EXPECT_EQ(steps("0 samples"), 0);
}

TEST(DurationTest, ItsTextReadsBackAsTheSame) {
  for (const auto* text : {"10000 steps", "5000000 samples", "2.5 epochs", "3 %"}) {
    EXPECT_EQ(Duration::parse(text).to_string(), text);
  }
}

TEST(DurationTest, TextThatIsNoDurationIsQuoted) {
  const std::string expected =
      "[duration] expected a number of steps, samples, epochs or %, as \"5e6 samples\", found ";
  EXPECT_EQ(parse_error("soon"), expected + "\"soon\"");
  EXPECT_EQ(parse_error(""), expected + "\"\"");
  EXPECT_EQ(parse_error("nan steps"), expected + "\"nan steps\"");
  EXPECT_EQ(parse_error("1e999 steps"), expected + "\"1e999 steps\"");
  EXPECT_EQ(parse_error("-1 epochs"), expected + "\"-1 epochs\", which is negative");
  EXPECT_EQ(parse_error("1.5 steps"), expected + "\"1.5 steps\", which is no whole number");
  EXPECT_EQ(parse_error("101 %"), expected + "\"101 %\", which is more than the run");
  EXPECT_EQ(parse_error("3 weeks"), expected + "\"3 weeks\": \"weeks\" is no unit");
}

TEST(DurationTest, WhatIsMissingForAUnitIsNamed) {
  EXPECT_EQ(steps_error("3 %", {}), "[duration] 3 % can't be told in steps: the steps of the run are unknown");
  EXPECT_EQ(steps_error("2 epochs", {.batch_size = 4}),
            "[duration] 2 epochs can't be told in steps: the samples of an epoch are unknown");
  EXPECT_EQ(steps_error("9 samples", {}), "[duration] 9 samples can't be told in steps: the batch size is unknown");
  EXPECT_EQ(steps_error("1e300 steps", {}), "[duration] 1e+300 steps are 1e+300 steps");
}

}  // namespace
}  // namespace contrastive::optim
