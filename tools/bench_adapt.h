#pragma once

#include <cstdint>
#include <string>

#include <nlohmann/json.hpp>

namespace contrastive::tools {

struct AdaptArguments {
  /// score: fit and logits; grid: the whole search; naive: both, of TIP-X, as the formulas stand; retrieval: prompts
  /// over an index.
  std::string part = "score";
  std::string adapter = "tip-x";
  int64_t images = 50000;
  int64_t classes = 1000;
  int64_t rows = 36000;  ///< of the support set, or of the index
  int64_t dim = 1024;
  int64_t threads = 0;  ///< 0: one per core
};

/// Times an adapter, or retrieval, on made-up features of these sizes (which are drawn before).
nlohmann::ordered_json bench_adapt(const AdaptArguments& arguments);

}  // namespace contrastive::tools
