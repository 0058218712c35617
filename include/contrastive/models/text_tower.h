#pragma once

#include <memory>

#include <torch/types.h>

#include "contrastive/core/export.h"
#include "contrastive/models/model_config.h"
#include "contrastive/models/tower.h"

namespace contrastive::models {

/// What every text tower can do.
class CONTRASTIVE_API TextTowerImpl : public TowerImpl {
 public:
  /// Shapes: tokens [B, T] int64, 1 <= T <= context_length, to [B, feature_width()], before the projection.
  /// Throws: Error if the shape or dtype is wrong, or (tokens in CPU memory) an id is outside the vocabulary.
  virtual torch::Tensor forward_features(const torch::Tensor& tokens) = 0;

  /// Shapes: tokens [B, T] to [B, E], not normalised. A locked tower builds no graph.
  torch::Tensor forward(const torch::Tensor& tokens);

  int64_t feature_width() const { return config_.width; }

 protected:
  explicit TextTowerImpl(const TextConfig& config) : config_(config) {}

  /// Throws: Error as forward_features.
  void check_tokens(const torch::Tensor& tokens) const;

  const TextConfig& config() const { return config_; }

 private:
  TextConfig config_;
};

/// The tower a config describes. The config must be valid.
CONTRASTIVE_API std::shared_ptr<TextTowerImpl> make_text_tower(const ModelConfig& config, torch::Device device);

}  // namespace contrastive::models
