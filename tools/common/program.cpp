#include "common/program.h"

#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <exception>
#include <fstream>
#include <string_view>

#include <c10/util/Flags.h>
#include <fmt/format.h>
#include <malloc.h>
#include <nlohmann/json.hpp>
#include <signal.h>

#include "contrastive/core/error.h"
#include "contrastive/core/version.h"
#include "contrastive/distributed/connect.h"
#include "contrastive/distributed/rank_environment.h"

#include "common/local_ranks.h"

C10_DECLARE_int(caffe2_log_level);

namespace contrastive::tools {
namespace {

/// LibTorch's own log: its warnings about connections come with stack traces, and before the error that says it all.
constexpr int kFatalOnly = 3;

std::atomic<bool> stop{false};
static_assert(std::atomic<bool>::is_always_lock_free, "set by a signal handler");

void request_stop(int signal) {
  stop = true;
  if (signal == SIGINT) std::signal(SIGINT, SIG_DFL);
}

/// LibTorch appends a C++ stack trace to its messages, which says nothing to a user.
std::string without_stack_trace(std::string_view message) {
  const auto end = message.find("\nException raised from");
  return std::string(message.substr(0, end));
}

/// What torchrun shows as the cause of its job's end. Source: torch.distributed.elastic's error handler.
void write_torchrun_error_file(const std::string& message) noexcept {
  const char* path = std::getenv("TORCHELASTIC_ERROR_FILE");
  if (path == nullptr || *path == '\0') return;
  try {
    const nlohmann::json content = {
        {"message", {{"message", message}, {"extraInfo", {{"timestamp", std::to_string(std::time(nullptr))}}}}}};
    std::ofstream(path) << content.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
  } catch (const std::exception&) {  // the message is on stderr, too
  }
}

distributed::RankEnvironment rank_environment_or_alone() {
  try {
    return distributed::read_rank_environment();
  } catch (const ConfigError&) {
    return {};
  }
}

/// An error's line, and the news of it for the other ranks.
class FailureReport {
 public:
  explicit FailureReport(std::string program) : program_(std::move(program)) {
    const auto ranks = rank_environment_or_alone();
    if (ranks.world_size > 1) rank_ = fmt::format("rank {}: ", ranks.rank);
  }

  /// This rank's own failure. Its line comes before any other rank's.
  int own(std::string_view message) const {
    print("error: ", message);
    tell_others(message);
    return end(kFailed);
  }

  /// One that other ranks have, too, or that another rank caused: only the first one is an error.
  int shared(std::string_view message, int exit_code) const {
    const auto first_cause = tell_others(message);
    if (first_cause.empty()) {
      print("error: ", message);
    } else {
      print("", "ended because of another rank's failure: " + first_cause);
    }
    return end(exit_code);
  }

 private:
  void print(std::string_view kind, std::string_view message) const {
    fmt::print(stderr, "{}: {}{}\n", program_, kind, with_rank(message));
  }

  std::string with_rank(std::string_view message) const {
    return message.starts_with(rank_) ? std::string(message) : rank_ + std::string(message);
  }

  /// A rank leaves at once: its connections still have threads, which a return from main would pull the ground from.
  int end(int exit_code) const {
    if (rank_.empty()) return exit_code;
    std::fflush(nullptr);
    std::_Exit(exit_code);
  }

  /// Returns another rank's failure that was first, if any.
  std::string tell_others(std::string_view message) const {
    const auto cause = with_rank(message);
    std::string first_cause;
    const bool is_first = distributed::report_failure(cause, &first_cause);
    if (!is_first && !first_cause.starts_with(rank_)) return first_cause;
    write_torchrun_error_file(cause);
    return {};
  }

  std::string program_;
  std::string rank_;  ///< "rank 2: ", or nothing if this process is alone
};

}  // namespace

void keep_freed_memory() {
#ifdef __GLIBC__
  constexpr int kNever = -1, kGrowBy = 64 << 20;
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, kNever);
  mallopt(M_TOP_PAD, kGrowBy);
#endif
}

int run_program(CLI::App& app, int argc, char** argv, const std::function<int()>& body) {
  follow_parent();
  if (std::getenv("TORCH_CPP_LOG_LEVEL") == nullptr) FLAGS_caffe2_log_level = kFatalOnly;
  app.set_version_flag("--version", [] { return version_details(); });
  app.failure_message([](const CLI::App* failed, const CLI::Error& error) {
    return fmt::format("{}: error: {} (--help shows the usage)\n", failed->get_name(), error.what());
  });
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kDone : kUsage;
  }
  try {
    return body();
  } catch (const ConfigError& error) {
    return FailureReport(app.get_name()).shared(error.what(), kUsage);
  } catch (const DistributedError& error) {
    return FailureReport(app.get_name()).shared(error.what(), kFailed);
  } catch (const std::exception& error) {
    return FailureReport(app.get_name()).own(without_stack_trace(error.what()));
  }
}

bool stop_requested() {
  return stop;
}

void install_stop_signals() {
  sigset_t stop_signals;
  sigemptyset(&stop_signals);
  for (const int signal : {SIGINT, SIGTERM, SIGUSR1}) {
    std::signal(signal, request_stop);
    sigaddset(&stop_signals, signal);
  }
  sigprocmask(SIG_UNBLOCK, &stop_signals, nullptr);
}

}  // namespace contrastive::tools
