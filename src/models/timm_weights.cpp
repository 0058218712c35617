#include <algorithm>
#include <array>
#include <string_view>
#include <utility>

#include <fmt/format.h>

#include "contrastive/core/error.h"
#include "contrastive/models/weight_names.h"

#include "models/timm_towers.h"
#include "models/tower_readers.h"

namespace contrastive::models::detail {
namespace {

using Tensors = std::vector<LazyTensor>;
using Wanted = std::vector<WantedTensor>;

constexpr int64_t kHeadWidth = 64;
constexpr int64_t kBitExpansion = 4;
constexpr int64_t kBitStemKernel = 7;
constexpr const char* kTrunk = "trunk.";

bool any_starts_with(const Tensors& tensors, std::string_view prefix) {
  return std::any_of(tensors.begin(), tensors.end(),
                     [&](const auto& tensor) { return tensor.name.starts_with(prefix); });
}

bool has(const Tensors& tensors, std::string_view name) {
  return std::any_of(tensors.begin(), tensors.end(), [&](const auto& tensor) { return tensor.name == name; });
}

void keep_below(Tensors& tensors, std::string_view prefix) {
  std::erase_if(tensors, [&](const auto& tensor) { return !tensor.name.starts_with(prefix); });
  for (auto& tensor : tensors) tensor.name.erase(0, prefix.size());
}

/// The network that a file of self-supervised training holds beside others, and without what it is wrapped in.
/// Sources: the checkpoints of DINO (student, teacher) and MoCo-v3 (base_encoder, momentum_encoder, predictor).
Tensors unwrapped(Tensors tensors) {
  for (const std::string_view prefix : {"teacher.", "module.", "_orig_mod.", "base_encoder.", "backbone.", "model."}) {
    if (any_starts_with(tensors, prefix)) keep_below(tensors, prefix);
  }
  return tensors;
}

void append_linear(const std::string& name, int64_t out, int64_t in, Wanted& wanted) {
  wanted.push_back({name + ".weight", {out, in}});
  wanted.push_back({name + ".bias", {out}});
}

void append_norm(const std::string& name, int64_t width, Wanted& wanted) {
  wanted.push_back({name + ".weight", {width}});
  wanted.push_back({name + ".bias", {width}});
}

int64_t hidden_width(const VisionConfig& config) {
  return static_cast<int64_t>(static_cast<double>(config.width) * config.mlp_ratio + 1e-6);
}

void append_mlp(const std::string& name, int64_t width, int64_t hidden, Wanted& wanted) {
  append_linear(name + ".fc1", hidden, width, wanted);
  append_linear(name + ".fc2", width, hidden, wanted);
}

void append_vit_block(const std::string& block, const VisionConfig& config, Wanted& wanted) {
  const auto width = config.width;
  append_norm(block + "norm1", width, wanted);
  append_linear(block + "attn.qkv", 3 * width, width, wanted);
  append_linear(block + "attn.proj", width, width, wanted);
  append_norm(block + "norm2", width, wanted);
  append_mlp(block + "mlp", width, hidden_width(config), wanted);
  if (!config.ls_init_value) return;
  wanted.push_back({block + "ls1.gamma", {width}});
  wanted.push_back({block + "ls2.gamma", {width}});
}

void append_attention_pool(const std::string& pool, const VisionConfig& config, Wanted& wanted) {
  const auto width = config.width;
  wanted.push_back({pool + "latent", {1, 1, width}});
  append_linear(pool + "q", width, width, wanted);
  append_linear(pool + "kv", 2 * width, width, wanted);
  append_linear(pool + "proj", width, width, wanted);
  append_norm(pool + "norm", width, wanted);
  append_mlp(pool + "mlp", width, hidden_width(config), wanted);
}

int64_t num_patches(const VisionConfig& config) {
  const auto grid = config.image_size / config.patch_size;
  return grid * grid;
}

/// One of the names with the config's width, its patch size or the nearest to it; `fallback` if there is none.
template <size_t N>
std::string nearest_name(const VisionConfig& config, const std::array<const char*, N>& names, const char* fallback) {
  std::string best = fallback;
  int64_t best_distance = -1;
  for (const auto* name : names) {
    const auto known = timm_defaults(name);
    if (!known || known->width != config.width) continue;
    const auto distance = std::abs(known->patch_size - config.patch_size);
    if (best_distance >= 0 && distance >= best_distance) continue;
    best = name;
    best_distance = distance;
  }
  return best;
}

constexpr std::array<const char*, 13> kVits = {
    "vit_tiny_patch16_224",    "vit_small_patch8_224",  "vit_small_patch16_224", "vit_small_patch32_224",
    "vit_base_patch8_224",     "vit_base_patch16_224",  "vit_base_patch32_224",  "vit_large_patch14_224",
    "vit_large_patch16_224",   "vit_large_patch32_224", "vit_huge_patch14_224",  "vit_giant_patch14_224",
    "vit_gigantic_patch14_224"};
constexpr std::array<const char*, 6> kSiglipVits = {"vit_base_patch16_siglip_224",   "vit_base_patch32_siglip_256",
                                                    "vit_large_patch16_siglip_256",  "vit_so400m_patch14_siglip_224",
                                                    "vit_so400m_patch16_siglip_256", "vit_giantopt_patch16_siglip_256"};
constexpr std::array<const char*, 6> kMixers = {"mixer_s16_224", "mixer_s32_224", "mixer_b16_224",
                                                "mixer_b32_224", "mixer_l16_224", "mixer_l32_224"};
constexpr std::array<const char*, 6> kBits = {"resnetv2_50x1_bit",  "resnetv2_50x3_bit",  "resnetv2_101x1_bit",
                                              "resnetv2_101x3_bit", "resnetv2_152x2_bit", "resnetv2_152x4_bit"};

/// Takes what a tower wants, each under its own name without `trunk.`, and checks that nothing is left.
Tensors take_all(TensorSet& set, const Wanted& wanted) {
  Tensors result;
  const std::string trunk = kTrunk;
  for (const auto& [name, shape] : wanted) result.push_back(renamed(set.take(name.substr(trunk.size()), shape), name));
  set.finish();
  return result;
}

int64_t heads_of(const TensorSet& set, int64_t width, int64_t asked) {
  const auto heads = asked > 0 ? asked : std::max<int64_t>(1, width / kHeadWidth);
  if (width % heads != 0) set.fail(fmt::format("its width {} can't be shared by {} heads", width, heads));
  return heads;
}

/// How the final tokens become features, as timm builds such towers.
void infer_pooling(const TensorSet& set, VisionConfig& config) {
  config.class_token = set.has("cls_token");
  config.pool_type = config.class_token ? "tok" : "avg";
  if (set.has_prefix("attn_pool.")) config.pool_type = "map";
  if (!set.has_prefix("fc_norm.")) return;
  config.pool_type = "avg";
  config.final_ln_after_pool = true;
}

VisionConfig infer_vit(const TensorSet& set, const ImageTowerOptions& options) {
  VisionConfig config;
  config.width = set.size("patch_embed.proj.weight", 0, 4);
  config.patch_size = set.size("patch_embed.proj.weight", 3, 4);
  config.layers = {set.count("blocks.", ".")};
  if (config.layers[0] == 0) set.fail("has no blocks");
  config.head_width = config.width / heads_of(set, config.width, options.heads);
  config.mlp_ratio = mlp_ratio_of(config.width, set.size("blocks.0.mlp.fc1.weight", 0, 2));
  config.norm_eps = kVitNormEps;
  config.pre_norm = set.has_prefix("norm_pre.");
  config.pre_logits = set.has_prefix("pre_logits.");
  if (set.has("blocks.0.ls1.gamma")) config.ls_init_value = 1e-5;  // what they start with does not matter here
  infer_pooling(set, config);
  const auto positions = set.size("pos_embed", 1, 3);
  const auto grid = square_side(positions - (config.class_token ? 1 : 0));
  if (grid == 0) {
    set.fail(fmt::format("its {} positions are not a square grid{}", positions,
                         config.class_token ? " and a class token" : ""));
  }
  config.image_size = grid * config.patch_size;
  config.timm_model_name = nearest_vit_name(config);
  return config;
}

VisionConfig infer_mixer(const TensorSet& set) {
  VisionConfig config;
  config.width = set.size("stem.proj.weight", 0, 4);
  config.patch_size = set.size("stem.proj.weight", 3, 4);
  config.layers = {set.count("blocks.", ".")};
  config.mlp_ratio = mlp_ratio_of(config.width, set.size("blocks.0.mlp_channels.fc1.weight", 0, 2));
  config.token_mlp_width = set.size("blocks.0.mlp_tokens.fc1.weight", 0, 2);
  const auto patches = set.size("blocks.0.mlp_tokens.fc1.weight", 1, 2);
  const auto grid = square_side(patches);
  if (grid == 0) set.fail(fmt::format("its {} patches are not a square grid", patches));
  config.image_size = grid * config.patch_size;
  config.norm_eps = kVitNormEps;
  config.pool_type = "avg";
  config.class_token = false;
  config.timm_model_name = nearest_mixer_name(config);
  return config;
}

VisionConfig infer_bit(const TensorSet& set, const ImageTowerOptions& options) {
  VisionConfig config;
  config.width = set.size("stem.conv.weight", 0, 4);
  config.layers.clear();
  for (int64_t stage = 0; set.has_prefix(fmt::format("stages.{}.", stage)); ++stage) {
    config.layers.push_back(set.count(fmt::format("stages.{}.blocks.", stage), "."));
  }
  if (config.layers.empty() || config.layers.size() > kMaxBitStages) {
    set.fail(fmt::format("has {} stages, expected 1 to {}", config.layers.size(), kMaxBitStages));
  }
  config.norm_groups = options.norm_groups > 0 ? options.norm_groups : config.norm_groups;
  config.pool_type = "avg";
  config.class_token = false;
  config.timm_model_name = nearest_bit_name(config);
  return config;
}

/// With open_clip's projection, which stands beside the trunk.
ImageTowerWeights read_trunk(Tensors tensors, Tensors projection, const ImageTowerOptions& options) {
  ImageTowerWeights tower;
  const bool is_mixer = has(tensors, "stem.proj.weight"), is_bit = has(tensors, "stem.conv.weight");
  tower.format = is_mixer ? "MLP-Mixer (timm)" : is_bit ? "BiT ResNetV2 (timm)" : "ViT (timm)";
  TensorSet set(tower.format, std::move(tensors));
  for (const auto* left_out : {"head.", "mask_token"}) set.drop(left_out);
  if (is_mixer) {
    tower.config = infer_mixer(set);
    tower.tensors = take_all(set, mixer_tensors(tower.config));
  } else if (is_bit) {
    tower.config = infer_bit(set, options);
    tower.tensors = take_all(set, bit_tensors(tower.config));
  } else {
    tower.config = infer_vit(set, options);
    tower.tensors = take_all(set, vit_tensors(tower.config));
  }
  tower.embed_dim = tower.config.output_width();
  if (!options.keep_head || projection.empty()) return tower;
  TensorSet head(tower.format, std::move(projection));
  tower.embed_dim = head.size("head.proj.weight", 0, 2);
  tower.config.proj_type = "linear";
  tower.config.proj_bias = head.has("head.proj.bias");
  tower.tensors.push_back(head.take("head.proj.weight", {tower.embed_dim, tower.config.output_width()}));
  if (tower.config.proj_bias) tower.tensors.push_back(head.take("head.proj.bias", {tower.embed_dim}));
  head.finish();
  return tower;
}

}  // namespace

Wanted vit_tensors(const VisionConfig& config) {
  const std::string trunk = kTrunk;
  const auto width = config.width;
  Wanted wanted;
  if (config.class_token) wanted.push_back({trunk + "cls_token", {1, 1, width}});
  wanted.push_back({trunk + "pos_embed", {1, num_patches(config) + (config.class_token ? 1 : 0), width}});
  wanted.push_back({trunk + "patch_embed.proj.weight", {width, 3, config.patch_size, config.patch_size}});
  wanted.push_back({trunk + "patch_embed.proj.bias", {width}});
  if (config.pre_norm) append_norm(trunk + "norm_pre", width, wanted);
  for (int64_t i = 0; i < config.layers.front(); ++i) {
    append_vit_block(fmt::format("{}blocks.{}.", trunk, i), config, wanted);
  }
  append_norm(trunk + (config.final_ln_after_pool ? "fc_norm" : "norm"), width, wanted);
  if (config.pool_type == "map") append_attention_pool(trunk + "attn_pool.", config, wanted);
  if (config.pre_logits) append_linear(trunk + "pre_logits.fc", width, width, wanted);
  return wanted;
}

Wanted mixer_tensors(const VisionConfig& config) {
  const std::string trunk = kTrunk;
  const auto width = config.width;
  Wanted wanted{{trunk + "stem.proj.weight", {width, 3, config.patch_size, config.patch_size}},
                {trunk + "stem.proj.bias", {width}}};
  for (int64_t i = 0; i < config.layers.front(); ++i) {
    const auto block = fmt::format("{}blocks.{}.", trunk, i);
    append_norm(block + "norm1", width, wanted);
    append_mlp(block + "mlp_tokens", num_patches(config), config.token_mlp_width, wanted);
    append_norm(block + "norm2", width, wanted);
    append_mlp(block + "mlp_channels", width, hidden_width(config), wanted);
  }
  append_norm(trunk + "norm", width, wanted);
  return wanted;
}

Wanted bit_tensors(const VisionConfig& config) {
  const std::string trunk = kTrunk;
  Wanted wanted{{trunk + "stem.conv.weight", {config.width, 3, kBitStemKernel, kBitStemKernel}}};
  int64_t in = config.width, out = config.width * kBitExpansion;
  for (size_t stage = 0; stage < config.layers.size(); ++stage) {
    const auto middle = out / kBitExpansion;
    for (int64_t i = 0; i < config.layers[stage]; ++i) {
      const auto block = fmt::format("{}stages.{}.blocks.{}.", trunk, stage, i);
      if (i == 0) wanted.push_back({block + "downsample.conv.weight", {out, in, 1, 1}});
      append_norm(block + "norm1", in, wanted);
      wanted.push_back({block + "conv1.weight", {middle, in, 1, 1}});
      append_norm(block + "norm2", middle, wanted);
      wanted.push_back({block + "conv2.weight", {middle, middle, 3, 3}});
      append_norm(block + "norm3", middle, wanted);
      wanted.push_back({block + "conv3.weight", {out, middle, 1, 1}});
      in = out;
    }
    out *= 2;
  }
  append_norm(trunk + "norm", in, wanted);
  return wanted;
}

std::string nearest_vit_name(const VisionConfig& config) {
  if (config.pool_type == "map") return nearest_name(config, kSiglipVits, "vit_base_patch16_siglip_224");
  return nearest_name(config, kVits, "vit_base_patch16_224");
}

std::string nearest_mixer_name(const VisionConfig& config) {
  return nearest_name(config, kMixers, "mixer_b16_224");
}

std::string nearest_bit_name(const VisionConfig& config) {
  for (const auto* name : kBits) {
    const auto known = timm_defaults(name);
    if (known && known->width == config.width && known->layers == config.layers) return name;
  }
  return "resnetv2_50x1_bit";
}

bool is_timm(const Tensors& tensors) {
  const auto inner = unwrapped(tensors);
  return has(inner, "patch_embed.proj.weight") || has(inner, "stem.proj.weight") || has(inner, "stem.conv.weight");
}

ImageTowerWeights read_timm_tower(Tensors tensors, const ImageTowerOptions& options) {
  return read_trunk(unwrapped(std::move(tensors)), {}, options);
}

bool is_open_clip(const Tensors& tensors) {
  return any_starts_with(strip_wrapper_prefix(tensors), "visual.");
}

ImageTowerWeights read_open_clip_tower(Tensors tensors, const ImageTowerOptions& options) {
  tensors = strip_wrapper_prefix(std::move(tensors));
  const auto layout = detect_layout(tensors);
  if (any_starts_with(tensors, "visual.trunk.")) {
    auto projection = tensors;
    keep_below(projection, "visual.");
    std::erase_if(projection, [](const auto& tensor) { return tensor.name.starts_with("trunk."); });
    keep_below(tensors, "visual.trunk.");
    return read_trunk(std::move(tensors), std::move(projection), options);
  }
  tensors = to_open_clip_names(std::move(tensors), layout, /*custom_text=*/false);
  const auto config = infer_openai_config(tensors);
  ImageTowerWeights tower{.config = config.vision_cfg,
                          .embed_dim = config.embed_dim,
                          .quick_gelu = layout == WeightLayout::openai,
                          .tensors = std::move(tensors),
                          .format = layout == WeightLayout::openai ? "OpenAI's CLIP" : "open_clip"};
  keep_below(tower.tensors, "visual.");
  return tower;
}

}  // namespace contrastive::models::detail
