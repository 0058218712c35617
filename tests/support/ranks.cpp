#include "tests/support/ranks.h"

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include "contrastive/distributed/connect.h"

namespace contrastive::test {
namespace {

constexpr const char* kCallVariable = "CONTRASTIVE_TEST_CALL";
constexpr std::chrono::seconds kTimeout{60};

std::string current_test() {
  const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
  return fmt::format("{}.{}", info->test_suite_name(), info->name());
}

/// The how-manieth call within the current test this is.
int next_call() {
  static std::pair<std::string, int> last;
  if (last.first != current_test()) last = {current_test(), 0};
  return last.second++;
}

struct Child {
  pid_t process = 0;
  std::filesystem::path output;
};

Child start(int rank, int ranks, int port, int call) {
  const std::vector<std::pair<std::string, std::string>> variables{
      {"RANK", std::to_string(rank)},       {"WORLD_SIZE", std::to_string(ranks)},
      {"LOCAL_RANK", std::to_string(rank)}, {"LOCAL_WORLD_SIZE", std::to_string(ranks)},
      {"MASTER_ADDR", "127.0.0.1"},         {"MASTER_PORT", std::to_string(port)},
      {"CONTRASTIVE_STORE_IS_HOSTED", "1"}, {"OMP_NUM_THREADS", "1"},
      {kCallVariable, std::to_string(call)}};
  for (const auto& [name, value] : variables) ::setenv(name.c_str(), value.c_str(), 1);
  Child child;
  child.output = std::filesystem::temp_directory_path() / fmt::format("contrastive_rank_{}_{}.txt", ::getpid(), rank);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 1, child.output.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  posix_spawn_file_actions_adddup2(&actions, 1, 2);
  auto program = std::filesystem::read_symlink("/proc/self/exe").string();
  auto filter = "--gtest_filter=" + current_test();
  char* arguments[] = {program.data(), filter.data(), nullptr};
  EXPECT_EQ(::posix_spawn(&child.process, program.c_str(), &actions, nullptr, arguments, environ), 0);
  posix_spawn_file_actions_destroy(&actions);
  for (const auto& [name, value] : variables) ::unsetenv(name.c_str());
  return child;
}

void expect_success(const Child& child, int rank) {
  int status = 0;
  ::waitpid(child.process, &status, 0);
  std::ostringstream output;
  output << std::ifstream(child.output).rdbuf();
  std::filesystem::remove(child.output);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "rank " << rank << ":\n" << output.str();
}

void run_as_rank(const std::function<void(const distributed::ProcessGroup&)>& body) {
  try {
    body(
        distributed::connect(distributed::read_rank_environment(), torch::kCPU, {.timeout = kTimeout, .on_stuck = {}}));
  } catch (const std::exception& error) {
    distributed::report_failure(error.what());
    ADD_FAILURE() << error.what();
  }
}

}  // namespace

bool is_rank() {
  return std::getenv(kCallVariable) != nullptr;
}

void run_on_ranks(int ranks, const std::function<void(const distributed::ProcessGroup&)>& body) {
  const int call = next_call();
  if (const char* wanted = std::getenv(kCallVariable)) {
    if (std::to_string(call) == wanted) run_as_rank(body);
    return;
  }
  if (ranks == 1) return body({});
  const distributed::HostedStore store;
  std::vector<Child> children;
  for (int rank = 0; rank < ranks; ++rank) children.push_back(start(rank, ranks, store.port(), call));
  for (int rank = 0; rank < ranks; ++rank) expect_success(children[static_cast<size_t>(rank)], rank);
}

}  // namespace contrastive::test
