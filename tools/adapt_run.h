#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "adapt_common.h"

namespace contrastive::tools {

/// What `clip_adapt run` was asked for.
struct RunArguments {
  ModelArguments model;
  SetArguments test;
  SetArguments train{.split = "train"};
  SetArguments validation{.split = "val"};
  std::vector<std::string> supports;  ///< support-set files
  std::vector<int64_t> shots;
  int64_t seeds = 3;
  int64_t first_seed = 1;
  int64_t views = 1;
  std::vector<std::string> adapters;
  std::vector<std::string> settings;  ///< "tip-x.tau=0.5"
  std::vector<std::string> protocols{"fixed"};
  std::vector<std::string> prompts;
  std::string pooling = "mean_direction";
  double scale = 0;  ///< 0: the model's
  int64_t max_per_class = 0;
  bool labelled_search = false;
  bool accept_labels = false;
  bool transductive = false;
  std::string output;
  std::string save;
  std::string command;
};

void add_run_options(CLI::App& command, RunArguments& arguments);

/// Fits and tests every adapter by every protocol on every support set, prints a line each and appends the records to
/// the output file.
int run_adapters(const RunArguments& arguments);

}  // namespace contrastive::tools
