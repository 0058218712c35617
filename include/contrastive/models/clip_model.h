#pragma once

#include <functional>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <ATen/core/Generator.h>
#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include "contrastive/core/export.h"
#include "contrastive/core/lazy_tensor.h"
#include "contrastive/core/safetensors.h"
#include "contrastive/distributed/process_group.h"
#include "contrastive/models/image_tower.h"
#include "contrastive/models/model_config.h"
#include "contrastive/models/text_tower.h"

namespace contrastive::models {

/// What the loss needs; gradients flow through all of it.
struct ClipOutput {
  torch::Tensor image_features;  ///< [B, E], L2-normalised rows, fp32
  torch::Tensor text_features;   ///< [B, E], L2-normalised rows, fp32
  torch::Tensor logit_scale;     ///< [], already exponentiated
  torch::Tensor logit_bias;      ///< [], or undefined if the model has none
};

/// An image tower, a text tower and the logit scale.
///
/// Construction takes memory for the parameters but does not set them: call reset_parameters or load_state.
/// In state() and its like the names are open_clip's: `visual.` before the image tower's, nothing (or `text.` with
/// custom_text) before the text tower's, in the order of open_clip's state_dict() and named_parameters() for its own
/// towers. (Inside torch::nn::Module the text tower is registered as "text".)
/// Source: Radford et al. 2021, figure 3.
class CONTRASTIVE_API ClipModelImpl : public torch::nn::Module {
 public:
  /// Throws: ConfigError if the config isn't valid.
  explicit ClipModelImpl(const ModelConfig& config, torch::Device device = torch::kCPU,
                         ImageTowerPart image_part = ImageTowerPart::whole);

  /// Draws all parameters anew, from the generator only. Source: the released code's initialisation; where that leaves
  /// torch's defaults (ViT blocks, convolutions), these.
  void reset_parameters(at::Generator generator);

  /// Sets logit_scale and logit_bias to what the config says.
  void reset_scale();

  /// Shapes: images [B, 3, H, W], normalised, to [B, E], not normalised. Throws: Error on another image size.
  torch::Tensor encode_image(const torch::Tensor& images);

  /// The same, then the embedding of each place in the image (ImageTower::forward_places).
  /// Shapes: images [B, 3, H, W] to [B, 1 + T, E], not normalised.
  torch::Tensor encode_places(const torch::Tensor& images);

  /// Shapes: tokens [B, T] int64, T <= context_length, to [B, E], not normalised.
  torch::Tensor encode_text(const torch::Tensor& tokens);

  ClipOutput forward(const torch::Tensor& images, const torch::Tensor& tokens);

  /// The same for images of which the features before the projection are known. Shapes: features [B, W].
  ClipOutput forward_features(const torch::Tensor& features, const torch::Tensor& tokens);

  /// Parameters and buffers by name; the tensors share the model's storage.
  NamedTensors state() const;

  /// Parameters that require a gradient, by name.
  NamedTensors named_trainable() const;

  /// Copies values in, one tensor at a time; dtypes are converted. A missing `num_batches_tracked` counts as 0 and a
  /// logit_scale or logit_bias of shape [1] as a scalar, as published files have both; anything else must match
  /// exactly, else nothing is changed. Tensors for which `may_be_missing` is true keep their values if the file has
  /// none for them. With the image tower's projection alone, the rest of the tower is passed over. Returns: the names
  /// that kept their values.
  /// Throws: CheckpointError that lists every missing, unexpected and mis-shaped tensor.
  std::vector<std::string> load_state(const std::vector<LazyTensor>& tensors,
                                      const std::function<bool(const std::string&)>& may_be_missing = {});
  void load_state(const NamedTensors& tensors);

  /// From now on every BatchNorm takes its statistics over the images of all ranks in a training step, and its running
  /// statistics have the same bits on every rank. All ranks must then forward and go back through the same towers in
  /// the same order. Parameters get this rank's share of their gradient: the sum over ranks is the whole batch's. With
  /// activation checkpointing the second forward pass of a block repeats its communication.
  void set_batch_norm_group(const distributed::ProcessGroup& group);

  /// Moves logit_scale into [0, ln max_scale]: call after each optimiser step.
  void clamp_logit_scale(double max_scale = 100);

  const ModelConfig& config() const { return config_; }

  std::shared_ptr<ImageTowerImpl> visual;
  std::shared_ptr<TextTowerImpl> text;
  torch::Tensor logit_scale;  ///< [], log of the scale
  torch::Tensor logit_bias;   ///< []; undefined without init_logit_bias

 private:
  /// In open_clip's order, which differs with custom_text.
  std::vector<std::pair<std::string, std::shared_ptr<torch::nn::Module>>> text_children() const;

  ModelConfig config_;
  std::set<std::string> absent_;  ///< tensors of the image tower that this model doesn't have
};
TORCH_MODULE(ClipModel);

/// A model's tensors, not read yet, as a file should hold them.
struct CompleteState {
  std::vector<LazyTensor> tensors;   ///< in the order of ClipModel::state()
  std::vector<std::string> missing;  ///< those that were missing and may be
};

/// Checks tensors (open_clip's names) against a config as ClipModel::load_state does, without taking memory for them,
/// and puts them in order; missing counters become zeros.
/// Throws: CheckpointError that lists every missing, unexpected and mis-shaped tensor.
CONTRASTIVE_API CompleteState complete_state(const ModelConfig& config, const std::vector<LazyTensor>& tensors,
                                             const std::function<bool(const std::string&)>& may_be_missing = {});

/// Rows divided by their L2 norm (at least 1e-12), in fp32 unless the input is fp64.
CONTRASTIVE_API torch::Tensor l2_normalize(const torch::Tensor& features);

}  // namespace contrastive::models
