#include "common/ranks.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string_view>

#include <ATen/Parallel.h>
#include <fmt/format.h>

#include "contrastive/core/log.h"
#include "contrastive/distributed/connect.h"

#include "common/program.h"

namespace contrastive::tools {
namespace {

/// Lines of several ranks end up in one terminal.
void name_rank_in_log(int64_t rank) {
  set_log_sink([rank](LogLevel level, std::string_view message) {
    const auto* kind = level == LogLevel::error ? "error: " : level == LogLevel::warning ? "warning: " : "";
    fmt::print(stderr, "rank {}: {}{}\n", rank, kind, message);
  });
}

/// A rank that can't be reached by an exception, as it computes or hangs, ends here when the job has failed.
[[noreturn]] void end_stuck_rank(const std::string& program, int64_t rank, const std::string& cause) {
  fmt::print(stderr, "{}: rank {}: ended because of another rank's failure: {}\n", program, rank, cause);
  std::fflush(nullptr);
  std::_Exit(kFailed);
}

}  // namespace

distributed::ProcessGroup meet_other_ranks(const std::string& program, const distributed::RankEnvironment& environment,
                                           torch::Device device, double timeout_seconds, bool choose_threads) {
  if (environment.world_size == 1) return {};
  name_rank_in_log(environment.rank);
  if (choose_threads && std::getenv("OMP_NUM_THREADS") == nullptr) {
    at::set_num_threads(static_cast<int>(distributed::threads_of_rank(environment, at::get_num_threads())));
  }
  const std::chrono::duration<double> timeout(timeout_seconds);
  return distributed::connect(
      environment, device,
      {.timeout = std::chrono::duration_cast<std::chrono::milliseconds>(timeout),
       .on_stuck = [program, rank = environment.rank](const auto& cause) { end_stuck_rank(program, rank, cause); }});
}

}  // namespace contrastive::tools
