#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "contrastive/models/model_config.h"

namespace contrastive::models::detail {

// Far above every published model; they keep a wrong file from asking for all memory there is.
constexpr double kMaxWidth = 1 << 16;
constexpr double kMaxLayers = 1024;
constexpr double kMaxImageSize = 1 << 14;
constexpr double kMaxContext = 1 << 20;
constexpr double kMaxVocabulary = 1 << 26;
constexpr double kMaxMlpRatio = 64;

/// Takes what is wrong with a key.
using Report = std::function<void(const std::string& key, const std::string& message)>;

void check_vision(const VisionConfig& config, const Report& report);
void check_text(const TextConfig& config, const Report& report);

/// Whether the towers' widths go with the embedding's, where there is no projection.
void check_embed_dim(const ModelConfig& config, const Report& report);

/// timm's default, as open_clip makes its towers: a ViT made for mean pooling has its norm behind that; one that was
/// made with a class token, as all with a projection are, keeps it before.
inline bool has_fc_norm_by_default(const VisionConfig& config) {
  return config.family() == TimmFamily::vit && config.pool_type == "avg" && config.proj_type == "none";
}

}  // namespace contrastive::models::detail
