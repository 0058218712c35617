#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "contrastive/core/lazy_tensor.h"
#include "contrastive/models/model_config.h"
#include "contrastive/models/tower_weights.h"

#include "models/tensor_set.h"

/// One reader for each kind of file, and what they share.
namespace contrastive::models::detail {

constexpr double kVitNormEps = 1e-6;
constexpr double kBertNormEps = 1e-12;
/// Each doubles the width.
constexpr size_t kMaxBitStages = 8;

/// The tensors of a tower under open_clip's names (without `visual.` or `text.`), the projection apart.
std::vector<WantedTensor> vit_tensors(const VisionConfig& config);
std::vector<WantedTensor> mixer_tensors(const VisionConfig& config);
std::vector<WantedTensor> bit_tensors(const VisionConfig& config);
std::vector<WantedTensor> bert_tensors(const TextConfig& config);

/// Names that timm knows a tower of these sizes by, or one that comes near; sizes are in the config's other fields.
std::string nearest_vit_name(const VisionConfig& config);
std::string nearest_mixer_name(const VisionConfig& config);
std::string nearest_bit_name(const VisionConfig& config);

/// Sets hf_model_name and the tokenizer's.
void name_bert(TextConfig& config);

/// PyTorch's files with timm's names.
bool is_timm(const std::vector<LazyTensor>& tensors);
ImageTowerWeights read_timm_tower(std::vector<LazyTensor> tensors, const ImageTowerOptions& options);

/// OpenAI's and open_clip's files of both towers.
bool is_open_clip(const std::vector<LazyTensor>& tensors);
ImageTowerWeights read_open_clip_tower(std::vector<LazyTensor> tensors, const ImageTowerOptions& options);

/// Google's files.
ImageTowerWeights read_jax_vit(std::vector<LazyTensor> tensors, const ImageTowerOptions& options);
ImageTowerWeights read_jax_mixer(std::vector<LazyTensor> tensors, const ImageTowerOptions& options);
ImageTowerWeights read_jax_bit(std::vector<LazyTensor> tensors, const ImageTowerOptions& options);
TextTowerWeights read_jax_text(std::vector<LazyTensor> tensors, const TextTowerOptions& options);
TextTowerWeights read_jax_bert(std::vector<LazyTensor> tensors, const TextTowerOptions& options);

/// BERT with transformers' names.
bool is_hf_bert(const std::vector<LazyTensor>& tensors);
TextTowerWeights read_hf_bert(std::vector<LazyTensor> tensors, const TextTowerOptions& options);

}  // namespace contrastive::models::detail
