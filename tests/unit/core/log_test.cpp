#include "contrastive/core/log.h"

#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

namespace contrastive {
namespace {

using Messages = std::vector<std::pair<LogLevel, std::string>>;

class LogTest : public ::testing::Test {
 protected:
  void TearDown() override {
    set_log_sink({});
    set_log_level(LogLevel::info);
  }

  void record() {
    set_log_sink([this](LogLevel level, std::string_view message) { messages_.emplace_back(level, message); });
  }

  Messages messages_;
};

TEST_F(LogTest, HandsMessagesToTheSinkInOrder) {
  record();
  log(LogLevel::info, "first");
  log(LogLevel::error, "");
  log(LogLevel::warning, "braces {} and 100 % stay");
  const Messages expected{
      {LogLevel::info, "first"}, {LogLevel::error, ""}, {LogLevel::warning, "braces {} and 100 % stay"}};
  EXPECT_EQ(messages_, expected);
}

TEST_F(LogTest, DropsMessagesBelowTheLevel) {
  record();
  log(LogLevel::debug, "below the default level");
  set_log_level(LogLevel::warning);
  log(LogLevel::info, "below");
  log(LogLevel::warning, "at");
  set_log_level(LogLevel::debug);
  log(LogLevel::debug, "lowest");
  const Messages expected{{LogLevel::warning, "at"}, {LogLevel::debug, "lowest"}};
  EXPECT_EQ(messages_, expected);
}

TEST_F(LogTest, WritesToStandardErrorByDefaultAndNeverToStandardOutput) {
  record();
  set_log_sink({});
  ::testing::internal::CaptureStderr();
  ::testing::internal::CaptureStdout();
  log(LogLevel::warning, "50 % of {} done");
  const auto output = ::testing::internal::GetCapturedStdout();
  const auto errors = ::testing::internal::GetCapturedStderr();
  EXPECT_EQ(output, "");
  EXPECT_NE(errors.find("50 % of {} done\n"), std::string::npos) << errors;
  EXPECT_TRUE(messages_.empty());
}

TEST_F(LogTest, CallsTheSinkOnceAtATime) {
  constexpr int kThreads = 4;
  constexpr int kMessages = 500;
  record();  // a plain vector: calls at the same time would lose messages or crash
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([] {
      for (int n = 0; n < kMessages; ++n) log(LogLevel::info, "message");
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(messages_.size(), static_cast<size_t>(kThreads * kMessages));
}

TEST_F(LogTest, GoesOnAfterASinkThatThrows) {
  set_log_sink([](LogLevel, std::string_view) { throw std::runtime_error("full"); });
  EXPECT_THROW(log(LogLevel::info, "lost"), std::runtime_error);
  record();
  log(LogLevel::info, "kept");
  EXPECT_EQ(messages_.size(), 1u);
}

}  // namespace
}  // namespace contrastive
