#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "contrastive/core/config_node.h"
#include "contrastive/core/export.h"

namespace contrastive::models {

/// The architectures that image towers are taken from timm with.
enum class TimmFamily { none, vit, resnetv2, mixer };

/// open_clip's vision_cfg as far as its own towers and timm's ViT, BiT ResNetV2 and MLP-Mixer go. Units: pixels for
/// sizes, channels for widths.
struct VisionConfig {
  std::vector<int64_t> layers = {12};  ///< one number: depth of a ViT or Mixer; several: blocks of a ResNet's stages
  int64_t width = 768;
  int64_t head_width = 64;
  double mlp_ratio = 4.0;
  int64_t patch_size = 16;  ///< ViT only
  int64_t image_size = 224;
  bool no_ln_pre = false;
  bool final_ln_after_pool = false;
  /// "tok": the class token; "avg": mean of the patch tokens, without it; "map": attention pool (timm's ViTs).
  std::string pool_type = "tok";
  std::optional<double> ls_init_value = {};  ///< LayerScale in every block, with this start value
  double patch_dropout = 0;                  ///< share of a sample's patches left out of a training step, in [0, 1)
  bool gelu_tanh = false;                    ///< act_kwargs: {approximate: tanh}
  double norm_eps = 1e-5;                    ///< norm_kwargs: {eps: ...}

  /// A tower by its name in timm, as vit_base_patch16_224, vit_base_patch16_siglip_224, resnetv2_50x1_bit or
  /// mixer_b16_224; "": CLIP's own. What follows is of timm's towers only.
  std::string timm_model_name = {};
  bool class_token = true;        ///< ViT: a class token stands before the patches
  bool pre_norm = false;          ///< ViT: a norm between embedding and blocks
  bool pre_logits = false;        ///< ViT: a dense layer with tanh after the pooling (ImageNet-21k ViTs of 2020)
  int64_t token_mlp_width = 384;  ///< Mixer: hidden width of the MLPs over tokens
  int64_t norm_groups = 32;       ///< BiT: of every GroupNorm
  double weight_norm_eps = 1e-8;  ///< BiT: added to the variance by weight standardisation
  std::string proj_type =
      "none";  ///< "linear": a projection to embed_dim follows; "none": the width is the embedding's
  bool proj_bias = false;

  bool is_timm() const { return !timm_model_name.empty(); }

  /// Of timm's name; `none` for CLIP's own towers.
  CONTRASTIVE_API TimmFamily family() const;

  /// CLIP's own ResNet.
  CONTRASTIVE_API bool is_resnet() const;

  /// Whether features are projected to embed_dim (CLIP's own towers always do).
  bool has_projection() const { return !is_timm() || proj_type == "linear"; }

  /// Attention heads: of every ViT block, or of the ResNet's attention pool.
  CONTRASTIVE_API int64_t heads() const;

  /// Width of the features before the projection: channels of the last feature map of a ResNet, else the width.
  CONTRASTIVE_API int64_t output_width() const;

  bool operator==(const VisionConfig&) const = default;
};

/// open_clip's text_cfg as far as its native tower and BERT go.
struct TextConfig {
  int64_t context_length = 77;
  int64_t vocab_size = 49408;
  int64_t width = 512;
  int64_t heads = 8;
  int64_t layers = 12;
  double mlp_ratio = 4.0;
  bool no_causal_mask = false;
  /// Position that is read: "argmax" (highest id, CLIP's end token), "first", "last", "eos" (the first eos_id); "map":
  /// an attention pool over all.
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
  std::string tokenizer_policy = {};   ///< tokenizer_kwargs: {policy: lit}: see text::TokenizerSpec

  /// A BERT by its name on the Hugging Face hub, as bert-base-uncased; "": the native tower. Its width, heads, layers,
  /// mlp_ratio, vocab_size, norm_eps and gelu_tanh are the fields above; it is pooled at the first position.
  std::string hf_model_name = {};
  int64_t max_positions = 512;  ///< BERT: rows of its position table
  int64_t token_types = 2;      ///< BERT: rows of its segment table; the first is used
  int64_t pad_id = 0;           ///< BERT: tokens of this id are not attended to

  bool is_bert() const { return !hf_model_name.empty(); }

  /// Whether features stay the same when a row's padding is cut off: nothing that is read comes after or sees it.
  bool may_cut_padding() const { return is_bert() || (!no_causal_mask && pool_type != "last" && pool_type != "map"); }

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
