#pragma once

#include <cstdint>
#include <string>

#include <nlohmann/json.hpp>

namespace contrastive::tools {

struct LossArguments {
  std::string kind = "contrastive";
  std::string precision = "fp32";
  int64_t rows = 8192;
  int64_t dim = 512;
  double scale = 14.2857;
  int64_t repetitions = 5;
  int64_t threads = 0;  ///< 0: one per core
};

/// Times a loss, forward and backward, of random unit rows, and measures the memory that it takes beyond its inputs.
nlohmann::ordered_json bench_loss(const LossArguments& arguments);

}  // namespace contrastive::tools
