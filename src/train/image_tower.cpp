#include "contrastive/train/image_tower.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "contrastive/core/error.h"
#include "contrastive/eval/checkpoint_source.h"
#include "contrastive/eval/preprocess_config.h"
#include "contrastive/eval/tower_source.h"
#include "contrastive/models/clip_model.h"
#include "contrastive/models/model_config.h"

namespace contrastive::train {
namespace {

constexpr const char* kPrefix = "visual.";

image::PreprocessSpec preprocess_of(const RunOptions& options, const models::ModelConfig& config) {
  return eval::load_preprocess(options.preprocess, config.vision_cfg.image_size);
}

/// Without the projection, which a locked tower's features don't depend on.
models::ModelConfig features_only(models::ModelConfig config) {
  if (!config.vision_cfg.is_timm()) return config;
  config.vision_cfg.proj_type = "none";
  config.vision_cfg.proj_bias = false;
  config.embed_dim = config.vision_cfg.output_width();
  config.text_cfg = {};
  return config;
}

}  // namespace

StartingImageTower find_image_tower(const RunOptions& options) {
  const auto config = models::load_model_config(options.model);
  if (!options.image.checkpoint.empty()) {
    auto source = eval::open_image_tower(options.image.checkpoint, config.vision_cfg);
    return {std::move(source.format), std::move(source.tensors)};
  }
  if (options.weights.empty()) {
    throw ConfigError("image.checkpoint: a run without it (and without weights) has no image tower that is known");
  }
  auto source = eval::open_checkpoint({.path = options.weights, .config = config});
  StartingImageTower tower{std::move(source.format), {}};
  for (auto& tensor : source.tensors) {
    if (!tensor.name.starts_with(kPrefix)) continue;
    tensor.name = tensor.name.substr(std::string(kPrefix).size());
    tower.tensors.push_back(std::move(tensor));
  }
  return tower;
}

OpenedImageTower open_trusted_image_tower(const RunOptions& options) {
  const auto config = models::load_model_config(options.model);
  const auto start = find_image_tower(options);
  OpenedImageTower opened;
  opened.tower = models::make_image_tower(features_only(config), torch::kCPU);
  opened.preprocess = preprocess_of(options, config);
  opened.tower->load_state(start.tensors);
  opened.tower->lock({});
  opened.tower->eval();
  return opened;
}

OpenedImageTower open_image_tower(const RunOptions& options) {
  auto opened = open_trusted_image_tower(options);
  opened.fingerprint = image_tower_fingerprint(options, find_image_tower(options));
  return opened;
}

int64_t locked_batch_size(const RunOptions& options) {
  constexpr int64_t kMostAtOnce = 256;
  return options.image.batch_size.value_or(std::min(options.train.global_batch, kMostAtOnce));
}

std::string image_tower_fingerprint(const RunOptions& options, const StartingImageTower& tower) {
  return eval::image_tower_fingerprint(models::load_model_config(options.model), tower.tensors);
}

}  // namespace contrastive::train
