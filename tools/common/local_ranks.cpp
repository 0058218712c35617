#include "common/local_ranks.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <fmt/format.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "contrastive/core/error.h"
#include "contrastive/distributed/connect.h"

#include "common/program.h"

namespace contrastive::tools {
namespace {

using Clock = std::chrono::steady_clock;

constexpr const char* kParentName = "CONTRASTIVE_PARENT";
constexpr const char* kGraceName = "CONTRASTIVE_GRACE_SECONDS";
constexpr int64_t kGraceSeconds = 10;
constexpr int64_t kMaxGraceSeconds = 86'400;

std::chrono::seconds grace() {
  const char* text = std::getenv(kGraceName);
  if (text == nullptr || *text == '\0') return std::chrono::seconds(kGraceSeconds);
  int64_t seconds = 0;
  const char* last = text + std::strlen(text);
  const auto [end, error] = std::from_chars(text, last, seconds);
  if (error != std::errc() || end != last || seconds < 0 || seconds > kMaxGraceSeconds) {
    throw ConfigError(
        fmt::format("{} is \"{}\", but must be an integer in [0, {}]", kGraceName, text, kMaxGraceSeconds));
  }
  return std::chrono::seconds(seconds);
}

/// Blocks the signals that run_local_ranks waits for, also in threads that start meanwhile.
class BlockedSignals {
 public:
  BlockedSignals() {
    sigemptyset(&waited_for_);
    for (const int signal : {SIGCHLD, SIGINT, SIGTERM, SIGUSR1}) sigaddset(&waited_for_, signal);
    sigprocmask(SIG_BLOCK, &waited_for_, &before_);
    std::signal(SIGCHLD, SIG_DFL);  // if it was inherited as ignored, nobody could be waited for
  }
  ~BlockedSignals() { sigprocmask(SIG_SETMASK, &before_, nullptr); }
  BlockedSignals(const BlockedSignals&) = delete;
  BlockedSignals& operator=(const BlockedSignals&) = delete;

  /// The next one, or 0 once the deadline is over.
  int wait(const std::optional<Clock::time_point>& deadline) const {
    while (true) {
      const auto left = deadline ? std::max(*deadline - Clock::now(), Clock::duration(0)) : std::chrono::hours(1);
      const auto nanoseconds = std::chrono::duration_cast<std::chrono::nanoseconds>(left).count();
      const timespec timeout{.tv_sec = nanoseconds / 1'000'000'000, .tv_nsec = nanoseconds % 1'000'000'000};
      const int signal = sigtimedwait(&waited_for_, nullptr, &timeout);
      if (signal > 0) return signal;
      if (errno == EAGAIN && deadline) return 0;
    }
  }

  /// A rank starts with the stop signals blocked: one that comes before it has its handlers waits for them.
  sigset_t mask_of_rank() const {
    sigset_t mask = before_;
    for (const int signal : {SIGINT, SIGTERM, SIGUSR1}) sigaddset(&mask, signal);
    return mask;
  }

 private:
  sigset_t waited_for_;
  sigset_t before_;
};

/// This process's variables, with some replaced, as execve wants them.
class Environment {
 public:
  explicit Environment(const std::vector<std::pair<std::string, std::string>>& changes) {
    for (char** entry = environ; *entry != nullptr; ++entry) {
      const std::string_view text(*entry);
      const auto name = text.substr(0, text.find('='));
      if (std::ranges::none_of(changes, [&](const auto& change) { return change.first == name; })) {
        entries_.emplace_back(text);
      }
    }
    for (const auto& [name, value] : changes) entries_.push_back(name + "=" + value);
    for (auto& entry : entries_) pointers_.push_back(entry.data());
    pointers_.push_back(nullptr);
  }

  char** pointers() { return pointers_.data(); }

 private:
  std::vector<std::string> entries_;
  std::vector<char*> pointers_;
};

/// The path keeps the program's name in ps; if the file was replaced meanwhile, the link still leads to the old one.
std::string own_executable() {
  std::error_code error;
  const auto path = std::filesystem::read_symlink("/proc/self/exe", error);
  return !error && std::filesystem::exists(path, error) ? path.string() : "/proc/self/exe";
}

class LocalRanks {
 public:
  LocalRanks(std::string program, int64_t ranks, char** argv)
      : program_(std::move(program)), executable_(own_executable()), argv_(argv), size_(ranks), grace_(grace()) {}

  /// Nothing may outlive an exception either.
  ~LocalRanks() {
    kill_all();
    for (const auto& rank : ranks_) {
      if (rank.is_running) waitpid(rank.pid, nullptr, 0);
    }
  }
  LocalRanks(const LocalRanks&) = delete;
  LocalRanks& operator=(const LocalRanks&) = delete;

  int run() {
    std::fflush(stdout);
    while (std::ssize(ranks_) < size_) start_next();
    while (num_running() > 0 && !killed_by_user_) {
      if (const int signal = signals_.wait(deadline_)) {
        on_signal(signal);
      } else {
        on_deadline();
      }
    }
    return exit_code_;
  }

  bool killed_by_user() const { return killed_by_user_; }

 private:
  struct Rank {
    pid_t pid;
    bool is_running = true;
  };

  void start_next() {
    const auto rank = std::to_string(ranks_.size());
    const auto size = std::to_string(size_);
    Environment environment({{"RANK", rank},
                             {"WORLD_SIZE", size},
                             {"LOCAL_RANK", rank},
                             {"LOCAL_WORLD_SIZE", size},
                             {"MASTER_ADDR", "127.0.0.1"},
                             {"MASTER_PORT", std::to_string(store_.port())},
                             {"CONTRASTIVE_STORE_IS_HOSTED", "1"},
                             {kParentName, std::to_string(getpid())}});
    posix_spawn_file_actions_t files;
    posix_spawn_file_actions_init(&files);
    if (!ranks_.empty()) posix_spawn_file_actions_addopen(&files, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    posix_spawnattr_t attributes;
    posix_spawnattr_init(&attributes);
    const auto mask = signals_.mask_of_rank();
    posix_spawnattr_setsigmask(&attributes, &mask);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
    pid_t pid = 0;
    const int error = posix_spawn(&pid, executable_.c_str(), &files, &attributes, argv_, environment.pointers());
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&files);
    if (error != 0) {
      throw DistributedError(
          fmt::format("[launch] rank {} of {} can't be started: {}", rank, size, std::strerror(error)));
    }
    ranks_.push_back({pid});
  }

  int64_t num_running() const { return std::ranges::count_if(ranks_, &Rank::is_running); }

  void on_signal(int signal) {
    if (signal == SIGCHLD) return reap();
    if (signal == SIGINT && std::exchange(interrupted_, true)) {
      killed_by_user_ = true;
    } else {
      send_all(signal == SIGINT ? SIGTERM : signal);
    }
  }

  void reap() {
    for (size_t i = 0; i < ranks_.size(); ++i) {
      int status = 0;
      if (!ranks_[i].is_running || waitpid(ranks_[i].pid, &status, WNOHANG) != ranks_[i].pid) continue;
      ranks_[i].is_running = false;
      if (!(WIFEXITED(status) && WEXITSTATUS(status) == 0)) on_failure(i, status);
    }
  }

  /// A rank that fails by itself has said so; what nobody has said is said here, and to the other ranks.
  void on_failure(size_t rank, int status) {
    if (killing_) return;
    const auto name = name_of(rank);
    if (WIFSIGNALED(status)) {
      const int signal = WTERMSIG(status);
      const auto cause = fmt::format("{} was killed by signal {} ({})", name, signal, strsignal(signal));
      fmt::print(stderr, "{}: error: {}\n", program_, cause);
      store_.report_failure(cause);
    } else if (!has_failed()) {
      const auto cause = fmt::format("{} ended with exit code {}", name, WEXITSTATUS(status));
      if (store_.report_failure(cause)) fmt::print(stderr, "{}: error: {}\n", program_, cause);
    }
    if (!has_failed()) deadline_ = Clock::now() + grace_;
    // Ranks that end because of another one exit with kFailed, perhaps sooner than that one.
    if (!has_failed() || exit_code_ == kFailed) exit_code_ = WIFSIGNALED(status) ? kFailed : WEXITSTATUS(status);
  }

  void on_deadline() {
    for (size_t i = 0; i < ranks_.size(); ++i) {
      if (!ranks_[i].is_running) continue;
      fmt::print(stderr, "{}: {} didn't end within {} s after the failure and is killed\n", program_, name_of(i),
                 grace_.count());
    }
    kill_all();
    deadline_.reset();
  }

  bool has_failed() const { return exit_code_ != kDone; }
  std::string name_of(size_t rank) const { return fmt::format("rank {} (process {})", rank, ranks_[rank].pid); }

  void send_all(int signal) const {
    for (const auto& rank : ranks_) {
      if (rank.is_running) ::kill(rank.pid, signal);
    }
  }

  void kill_all() {
    killing_ = true;
    send_all(SIGKILL);
  }

  std::string program_;
  std::string executable_;
  char** argv_;
  int64_t size_;
  std::chrono::seconds grace_;
  BlockedSignals signals_;  // before the store, whose threads inherit what is blocked
  distributed::HostedStore store_;
  std::vector<Rank> ranks_;
  std::optional<Clock::time_point> deadline_;
  int exit_code_ = kDone;
  bool interrupted_ = false;
  bool killed_by_user_ = false;
  bool killing_ = false;
};

}  // namespace

int run_local_ranks(const std::string& program, int64_t ranks, char** argv) {
  int exit_code = kDone;
  bool killed_by_user = false;
  {
    LocalRanks local_ranks(program, ranks, argv);
    exit_code = local_ranks.run();
    killed_by_user = local_ranks.killed_by_user();
  }
  if (killed_by_user) {  // as one process ends: by the signal, which a shell wants to know
    std::signal(SIGINT, SIG_DFL);
    std::raise(SIGINT);
  }
  return exit_code;
}

void follow_parent() {
  const char* parent = std::getenv(kParentName);
  if (parent == nullptr) return;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (std::to_string(getppid()) != parent) std::_Exit(kFailed);  // it ended before the call above
  ::unsetenv(kParentName);
}

}  // namespace contrastive::tools
