#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "contrastive/core/config_node.h"
#include "contrastive/core/export.h"

namespace contrastive::models {

/// open_clip's vision_cfg as far as its native towers go. Units: pixels for sizes, channels for widths.
struct VisionConfig {
  std::vector<int64_t> layers = {12};  ///< one number: depth of a ViT; four: blocks per stage of a ModifiedResNet
  int64_t width = 768;
  int64_t head_width = 64;
  double mlp_ratio = 4.0;
  int64_t patch_size = 16;  ///< ViT only
  int64_t image_size = 224;
  bool no_ln_pre = false;
  bool final_ln_after_pool = false;
  std::string pool_type = "tok";             ///< "tok": the class token; "avg": mean of the patch tokens, without it
  std::optional<double> ls_init_value = {};  ///< LayerScale in every block, with this start value
  double patch_dropout = 0;                  ///< share of a sample's patches left out of a training step, in [0, 1)
  bool gelu_tanh = false;                    ///< act_kwargs: {approximate: tanh}
  double norm_eps = 1e-5;                    ///< norm_kwargs: {eps: ...}
  std::string timm_model_name = {};  ///< a SigLIP tower (MAP head, no class token) by its name in timm; "": CLIP's own

  CONTRASTIVE_API bool is_resnet() const;

  /// A ViT with SigLIP's attention pool instead of a class token.
  bool is_siglip() const { return !timm_model_name.empty(); }

  /// Attention heads: of every ViT block, or of the ResNet's attention pool.
  CONTRASTIVE_API int64_t heads() const;

  /// Channels of the last feature map of a ResNet, else the width.
  CONTRASTIVE_API int64_t output_width() const;

  bool operator==(const VisionConfig&) const = default;
};

/// open_clip's text_cfg as far as its native tower goes.
struct TextConfig {
  int64_t context_length = 77;
  int64_t vocab_size = 49408;
  int64_t width = 512;
  int64_t heads = 8;
  int64_t layers = 12;
  double mlp_ratio = 4.0;
  bool no_causal_mask = false;
  /// Position that is read: "argmax" (highest id, CLIP's end token), "first", "last", "eos" (the first eos_id).
  std::string pool_type = "argmax";
  std::optional<int64_t> eos_id = {};
  std::string proj_type = "linear";  ///< "linear", or "none": the width is the embedding's
  bool proj_bias = false;
  std::optional<double> ls_init_value = {};
  bool gelu_tanh = false;
  double norm_eps = 1e-5;
  std::string hf_tokenizer_name = {};  ///< "": CLIP's byte pairs
  std::string tokenizer_clean = {};    ///< tokenizer_kwargs: {clean: ...}
  bool tokenizer_strip_sep = false;    ///< tokenizer_kwargs: {strip_sep_token: ...}

  /// Whether features stay the same when a row's padding is cut off: nothing that is read comes after or sees it.
  bool may_cut_padding() const { return !no_causal_mask && pool_type != "last"; }

  bool operator==(const TextConfig&) const = default;
};

/// What open_clip's model JSON says, and how the model is trained: field names, defaults and meaning of the former are
/// open_clip 3.3.0's.
struct ModelConfig {
  int64_t embed_dim = 512;
  VisionConfig vision_cfg;
  TextConfig text_cfg;
  bool quick_gelu = false;
  double init_logit_scale = 2.6592600369327779;  ///< log of the scale: ln(1 / 0.07)
  std::optional<double> init_logit_bias = {};    ///< SigLIP's bias; none: the model has no bias
  bool custom_text = false;                      ///< text parameters are named `text.`...; nothing else
  /// Not open_clip's: training steps keep only the input of each block (of a Transformer or ResNet) and run it again in
  /// the backward pass. The same gradients for less memory and a third more work.
  bool checkpoint_activations = false;

  bool operator==(const ModelConfig&) const = default;
};

/// Reads a model JSON. Fields of open_clip that this library doesn't support are accepted with the value that switches
/// them off.
/// Throws: ConfigError that lists every unknown, mistyped, out-of-range, inconsistent or unsupported field by name.
CONTRASTIVE_API ModelConfig load_model_config(const ConfigNode& node);

/// The same from a JSON (or YAML) file.
CONTRASTIVE_API ModelConfig model_config_from_file(const std::filesystem::path& file);

/// The JSON that open_clip reads as `model_cfg`: its keys only, what equals its default left out.
CONTRASTIVE_API ConfigNode to_node(const ModelConfig& config);

/// The same with our own keys: load_model_config makes an equal config of it.
CONTRASTIVE_API ConfigNode to_full_node(const ModelConfig& config);

/// Throws: ConfigError if sizes don't fit together (for configs that were not read from a file).
CONTRASTIVE_API void validate(const ModelConfig& config);

/// Number of trainable values of the model; takes no memory for them.
CONTRASTIVE_API int64_t parameter_count(const ModelConfig& config);

}  // namespace contrastive::models
