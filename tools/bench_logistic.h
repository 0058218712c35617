#pragma once

#include <cstdint>
#include <string>

#include <nlohmann/json.hpp>

namespace contrastive::tools {

struct LogisticArguments {
  std::string features;  ///< safetensors file with train_features, train_labels, test_features and test_labels
  double c = 0.316;
  double tolerance = 1e-4;
  double objective_tolerance = 1e-7;
  bool sweep = false;  ///< times the whole linear probe with its binary sweep instead of one fit
  bool fp64 = false;
  int64_t repetitions = 3;
  int64_t threads = 0;  ///< 0: one per core
};

/// Times logistic regressions on features of a file (which is read before), each from the start, with what it finds
/// beforehand about the features.
nlohmann::ordered_json bench_logistic(const LogisticArguments& arguments);

}  // namespace contrastive::tools
