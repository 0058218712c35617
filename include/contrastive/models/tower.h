#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <ATen/core/Generator.h>
#include <torch/nn/module.h>
#include <torch/types.h>

#include "contrastive/core/export.h"
#include "contrastive/core/lazy_tensor.h"

namespace contrastive::models {

/// Where Tower::layer_group puts the tensors of the projection head.
inline constexpr int64_t kHeadGroup = -1;

/// What of a tower is locked. The head is not part of the layer groups.
struct LockOptions {
  int64_t unlocked_groups = 0;  ///< layer groups, counted from the head, that stay trainable
  bool head = false;            ///< the projection head is locked, too
};

/// Whether a tensor belongs to a tower's projection, by its name in checkpoints without `visual.` or `text.`.
CONTRASTIVE_API bool is_projection(const std::string& name);

/// What image and text towers have in common: layers that can be locked from the input on, and a projection head.
///
/// Layer groups run from the input to the features: 0 is the embedding or stem, then comes one for each block (a
/// ResNet: each stage), the last of them with the final norm and the pooling.
///
/// A locked parameter requires no gradient. A module none of whose parameters require a gradient is in eval mode,
/// whatever train(true) says, so that running statistics stay and nothing is dropped at random.
class CONTRASTIVE_API TowerImpl : public torch::nn::Module {
 public:
  virtual int64_t num_layer_groups() const = 0;

  /// The layer group of a tensor by its name within this module, or kHeadGroup.
  virtual int64_t layer_group(const std::string& name) const = 0;

  /// Draws every parameter anew from the generator.
  virtual void reset_parameters(at::Generator& generator) = 0;

  /// Draws the projection head anew, alone: weights normal with variance 1 / inputs, biases zero.
  void reset_head(at::Generator& generator);

  /// Whether training steps keep only the input of each block and run it again in the backward pass.
  virtual void checkpoint_activations(bool on) = 0;

  /// The name in published checkpoints of a tensor that this module calls `name`.
  virtual std::string checkpoint_name(const std::string& name) const { return name; }

  /// Features before the projection to the embedding, [B, feature_width()] to [B, E]; the same tensor without a head.
  virtual torch::Tensor project(const torch::Tensor& features) const = 0;

  /// Whether project() has parameters.
  virtual bool has_head() const = 0;

  /// Locks what the options say and unlocks the rest.
  /// Throws: ConfigError if there are fewer layer groups than unlocked_groups.
  void lock(const LockOptions& options);

  /// Parameters and buffers under their names in checkpoints; the tensors share the tower's storage.
  NamedTensors state() const;

  /// Copies values in. The head's may be missing, superfluous or of other shapes than this tower's; then it is left as
  /// it is. Returns: whether the head is there and was loaded.
  /// Throws: CheckpointError that lists every other missing, unexpected and mis-shaped tensor.
  bool load_state(const std::vector<LazyTensor>& tensors);

  /// Makes everything trainable.
  void unlock();

  /// Whether nothing before the head is trained: features are computed without a graph then.
  bool features_are_locked() const { return features_are_locked_; }

  void train(bool on = true) override;

 private:
  bool is_locked(const std::string& name) const;

  bool wants_training_ = true;  ///< what train() was asked for
  bool is_any_locked_ = false;
  bool features_are_locked_ = false;
  LockOptions lock_;
};

}  // namespace contrastive::models
