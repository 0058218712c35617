#pragma once

#include <functional>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

namespace contrastive::tools {

/// Exit codes of every program.
inline constexpr int kDone = 0;
inline constexpr int kFailed = 1;
inline constexpr int kUsage = 2;

/// Parses the command line and runs `body`; the one place where exceptions end. An error is one line on stderr, which
/// names the rank if there are several; the other ranks are told, and one that ends because of another says so.
/// --help and --version exit with 0, a wrong command line or configuration with 2, anything else that fails with 1.
int run_program(CLI::App& app, int argc, char** argv, const std::function<int()>& body);

/// For programs that take and free the same large blocks of memory in every step: freed ones are kept instead of given
/// back to the system, which would zero every page again. At the start of main.
void keep_freed_memory();

/// True once SIGINT, SIGTERM or SIGUSR1 asked the program to save and stop; a second SIGINT ends it at once.
bool stop_requested();

/// Also lets those through that came since run_local_ranks started this program.
void install_stop_signals();

}  // namespace contrastive::tools
