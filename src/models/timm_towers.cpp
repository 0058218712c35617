#include "models/timm_towers.h"

#include <algorithm>
#include <array>
#include <string_view>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace contrastive::models::detail {
namespace {

/// A ViT of timm's: vit_<size>_patch<P>_<kind><image size>, and whatever follows a dot (the weights' origin).
struct VitSize {
  const char* prefix;
  int64_t width, layers, heads;
  double mlp_ratio;
  int64_t patch_size;
};

constexpr VitSize kSiglipTowers[] = {
    {"vit_base_patch32_siglip_", 768, 12, 12, 4.0, 32},       {"vit_base_patch16_siglip_", 768, 12, 12, 4.0, 16},
    {"vit_large_patch16_siglip_", 1024, 24, 16, 4.0, 16},     {"vit_so400m_patch14_siglip_", 1152, 27, 16, 3.7362, 14},
    {"vit_so400m_patch16_siglip_", 1152, 27, 16, 3.7362, 16}, {"vit_giantopt_patch16_siglip_", 1536, 40, 16, 4.0, 16}};

constexpr VitSize kVits[] = {{"vit_tiny_patch16_", 192, 12, 3, 4.0, 16},
                             {"vit_small_patch32_", 384, 12, 6, 4.0, 32},
                             {"vit_small_patch16_", 384, 12, 6, 4.0, 16},
                             {"vit_small_patch8_", 384, 12, 6, 4.0, 8},
                             {"vit_base_patch32_", 768, 12, 12, 4.0, 32},
                             {"vit_base_patch16_", 768, 12, 12, 4.0, 16},
                             {"vit_base_patch8_", 768, 12, 12, 4.0, 8},
                             {"vit_large_patch32_", 1024, 24, 16, 4.0, 32},
                             {"vit_large_patch16_", 1024, 24, 16, 4.0, 16},
                             {"vit_large_patch14_", 1024, 24, 16, 4.0, 14},
                             {"vit_huge_patch14_", 1280, 32, 16, 4.0, 14},
                             {"vit_giant_patch14_", 1408, 40, 16, 48.0 / 11.0, 14},
                             {"vit_gigantic_patch14_", 1664, 48, 16, 64.0 / 13.0, 14}};

// The SigLIP towers whose blocks use the GELU's approximation by tanh; the others of timm use the exact one.
constexpr std::array<std::string_view, 7> kTanhTowers = {
    "vit_base_patch32_siglip_256",    "vit_large_patch16_siglip_512",  "vit_so400m_patch16_siglip_256",
    "vit_so400m_patch16_siglip_384",  "vit_so400m_patch16_siglip_512", "vit_giantopt_patch16_siglip_256",
    "vit_giantopt_patch16_siglip_384"};

struct BitSize {
  const char* name;
  std::array<int64_t, 4> layers;
  int64_t width_factor;
};

constexpr BitSize kBits[] = {{"resnetv2_50x1_bit", {3, 4, 6, 3}, 1},   {"resnetv2_50x3_bit", {3, 4, 6, 3}, 3},
                             {"resnetv2_101x1_bit", {3, 4, 23, 3}, 1}, {"resnetv2_101x3_bit", {3, 4, 23, 3}, 3},
                             {"resnetv2_152x2_bit", {3, 8, 36, 3}, 2}, {"resnetv2_152x4_bit", {3, 8, 36, 3}, 4}};

struct MixerSize {
  const char* name;
  int64_t width, layers, patch_size;
};

constexpr MixerSize kMixers[] = {{"mixer_s32_224", 512, 8, 32},   {"mixer_s16_224", 512, 8, 16},
                                 {"mixer_b32_224", 768, 12, 32},  {"mixer_b16_224", 768, 12, 16},
                                 {"mixer_l32_224", 1024, 24, 32}, {"mixer_l16_224", 1024, 24, 16}};

struct BertSize {
  const char* name;
  int64_t width, layers, heads, vocab_size;
};

constexpr BertSize kBerts[] = {{"bert-base-uncased", 768, 12, 12, 30522}, {"bert-large-uncased", 1024, 24, 16, 30522}};

constexpr double kVitEpsilon = 1e-6;
constexpr double kBertEpsilon = 1e-12;
constexpr int64_t kBitStemWidth = 64;

bool is_number(std::string_view text) {
  return !text.empty() && text.find_first_not_of("0123456789") == text.npos;
}

template <typename Sizes>
const VitSize* find_vit(std::string_view name, const Sizes& sizes) {
  for (const auto& size : sizes) {
    const std::string_view prefix = size.prefix;
    if (name.starts_with(prefix) && is_number(name.substr(prefix.size()))) return &size;
  }
  return nullptr;
}

VisionConfig vit_config(const VitSize& size) {
  VisionConfig config;
  config.layers = {size.layers};
  config.width = size.width;
  config.head_width = size.width / size.heads;
  config.mlp_ratio = size.mlp_ratio;
  config.patch_size = size.patch_size;
  config.norm_eps = kVitEpsilon;
  return config;
}

std::optional<VisionConfig> find(std::string_view name) {
  if (const auto* size = find_vit(name, kSiglipTowers)) {
    auto config = vit_config(*size);
    config.class_token = false;
    config.pool_type = "map";
    config.gelu_tanh = std::find(kTanhTowers.begin(), kTanhTowers.end(), name) != kTanhTowers.end();
    return config;
  }
  if (const auto* size = find_vit(name, kVits)) return vit_config(*size);
  for (const auto& size : kBits) {
    if (name != size.name) continue;
    VisionConfig config;
    config.layers.assign(size.layers.begin(), size.layers.end());
    config.width = kBitStemWidth * size.width_factor;
    config.pool_type = "avg";
    config.class_token = false;
    return config;
  }
  for (const auto& size : kMixers) {
    if (name != size.name) continue;
    VisionConfig config;
    config.layers = {size.layers};
    config.width = size.width;
    config.patch_size = size.patch_size;
    config.token_mlp_width = size.width / 2;
    config.norm_eps = kVitEpsilon;
    config.pool_type = "avg";
    config.class_token = false;
    return config;
  }
  return std::nullopt;
}

}  // namespace

std::optional<VisionConfig> timm_defaults(const std::string& name) {
  auto config = find(std::string_view(name).substr(0, name.find('.')));
  if (config) config->timm_model_name = name;
  return config;
}

std::string known_timm_names() {
  return "ViTs as vit_base_patch16_224 or vit_base_patch16_siglip_224, BiT as resnetv2_50x1_bit, Mixers as "
         "mixer_b16_224";
}

std::optional<TextConfig> bert_defaults(const std::string& name) {
  for (const auto& size : kBerts) {
    if (name != size.name) continue;
    TextConfig config;
    config.hf_model_name = name;
    config.width = size.width;
    config.layers = size.layers;
    config.heads = size.heads;
    config.vocab_size = size.vocab_size;
    config.norm_eps = kBertEpsilon;
    config.no_causal_mask = true;
    config.pool_type = "first";
    return config;
  }
  return std::nullopt;
}

std::string known_bert_names() {
  std::vector<std::string> names;
  for (const auto& size : kBerts) names.emplace_back(size.name);
  return fmt::format("{}", fmt::join(names, ", "));
}

}  // namespace contrastive::models::detail

namespace contrastive::models {

TimmFamily VisionConfig::family() const {
  if (!is_timm()) return TimmFamily::none;
  if (timm_model_name.starts_with("resnetv2_")) return TimmFamily::resnetv2;
  return timm_model_name.starts_with("mixer_") ? TimmFamily::mixer : TimmFamily::vit;
}

}  // namespace contrastive::models
