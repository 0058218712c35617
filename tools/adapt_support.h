#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "adapt_common.h"

namespace contrastive::tools {

/// What one of the commands of `clip_adapt support` was asked for.
struct SupportArguments {
  ModelArguments model;
  SetArguments set{.split = "train"};
  int64_t shots = 16;
  int64_t seed = 1;
  int64_t views = 1;
  int64_t max_per_class = 0;
  std::vector<std::string> indices;
  std::string index_checkpoint;
  std::string prompts;
  int64_t per_class = 16;
  int64_t min_per_class = 1;
  int64_t candidates = 0;
  double duplicate_cosine = 0.94;
  double excluded_cosine = 0.97;
  bool several_classes = false;
  SetArguments excluded;
  std::string shards;
  int64_t first_class = 0;
  std::vector<std::string> files;
  std::string output;
};

/// Returns: the command `support`, whose subcommands are from-split, from-folder, from-shards, append, cap, show and
/// sheet.
CLI::App* add_support_commands(CLI::App& app, SupportArguments& arguments);

/// Runs the subcommand that was parsed.
int run_support_command(const CLI::App& support, const SupportArguments& arguments);

}  // namespace contrastive::tools
