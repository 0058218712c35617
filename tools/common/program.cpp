#include "common/program.h"

#include <atomic>
#include <csignal>
#include <cstdio>
#include <exception>
#include <string_view>

#include <fmt/format.h>

#include "contrastive/core/error.h"
#include "contrastive/core/version.h"

namespace contrastive::tools {
namespace {

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

int report(const std::string& program, std::string_view message, int exit_code) {
  fmt::print(stderr, "{}: error: {}\n", program, message);
  return exit_code;
}

}  // namespace

int run_program(CLI::App& app, int argc, char** argv, const std::function<int()>& body) {
  const auto program = app.get_name();
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
    return report(program, error.what(), kUsage);
  } catch (const std::exception& error) {
    return report(program, without_stack_trace(error.what()), kFailed);
  }
}

bool stop_requested() {
  return stop;
}

void install_stop_signals() {
  for (const int signal : {SIGINT, SIGTERM, SIGUSR1}) std::signal(signal, request_stop);
}

}  // namespace contrastive::tools
