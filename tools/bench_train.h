#pragma once

#include <cstdint>
#include <string>

#include <nlohmann/json.hpp>

namespace contrastive::tools {

struct TrainArguments {
  std::string model = "ViT-B-32";
  std::string precision = "fp32";
  int64_t batch_size = 32;
  int64_t tokens = 22;
  int64_t steps = 5;
  int64_t threads = 0;  ///< 0: one per core
  std::string image_tower = "trained";
  std::string data;      ///< shards to take the batches from; empty: random pixels and tokens
  int64_t workers = 2;   ///< decoding threads, with data
  int64_t prefetch = 0;  ///< batches made ahead, with data
  bool is_profiled = false;
};

/// Times whole training steps: batch, normalise, forward, loss, backward, optimiser. A locked image tower is locked
/// with its projection, as open_clip's lock_image_tower does. With is_profiled the result has "profile" (StepProfile)
/// over the steps that were timed. Throws: ConfigError if the arguments do not fit the model; DataError about the
/// shards.
nlohmann::ordered_json bench_train(const TrainArguments& arguments);

}  // namespace contrastive::tools
