#include "contrastive/models/model_config.h"

#include <algorithm>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "contrastive/core/error.h"

#include "models/model_config_checks.h"

namespace contrastive::models {
namespace {

constexpr size_t kResnetStages = 4;
constexpr size_t kMaxStages = 8;
constexpr int64_t kResnetReduction = 32;
constexpr int64_t kBottleneckExpansion = 4;

}  // namespace

namespace detail {
namespace {

void check_layers(const VisionConfig& config, const Report& report) {
  const auto in_range = [](int64_t count) { return count >= 1 && count <= static_cast<int64_t>(kMaxLayers); };
  const bool is_bit = config.family() == TimmFamily::resnetv2;
  const bool count_fits =
      config.layers.size() == 1 || (!config.is_timm() && config.layers.size() == kResnetStages) || is_bit;
  if (count_fits && !config.layers.empty() && config.layers.size() <= kMaxStages &&
      std::all_of(config.layers.begin(), config.layers.end(), in_range))
    return;
  report("layers", "expected the number of layers, or a list of 4 (blocks of a ResNet's stages), each at least 1");
}

void check_mlp(int64_t width, double mlp_ratio, const Report& report) {
  if (static_cast<double>(width) * mlp_ratio >= 1) return;
  report("mlp_ratio", fmt::format("leaves no hidden channel at width {}", width));
}

void check_vit(const VisionConfig& config, const Report& report) {
  if (config.width % config.head_width != 0) {
    report("head_width", fmt::format("{} doesn't divide the width {}", config.head_width, config.width));
  }
  if (config.image_size < config.patch_size) {
    report("patch_size", fmt::format("{} is more than the image_size {}", config.patch_size, config.image_size));
  } else if (config.image_size % config.patch_size != 0 && config.pool_type != "map") {
    report("patch_size", fmt::format("{} doesn't divide the image_size {}", config.patch_size, config.image_size));
  }
  if (config.is_timm() && config.pool_type == "tok" && !config.class_token) {
    report("pool_type", "tok needs a class token");
  }
  check_mlp(config.width, config.mlp_ratio, report);
}

void check_mixer(const VisionConfig& config, const Report& report) {
  if (config.image_size % config.patch_size != 0) {
    report("patch_size", fmt::format("{} doesn't divide the image_size {}", config.patch_size, config.image_size));
  }
  if (config.token_mlp_width < 1) report("token_mlp_width", "must be at least 1");
  check_mlp(config.width, config.mlp_ratio, report);
}

void check_bit(const VisionConfig& config, const Report& report) {
  if (config.width % config.norm_groups != 0) {
    report("norm_groups", fmt::format("{} doesn't divide the stem's width {}", config.norm_groups, config.width));
  }
}

/// What only CLIP's own ViT or timm's has.
void check_no_vit_options(const VisionConfig& config, const Report& report) {
  if (config.pool_type == "avg" && !config.pre_norm && !config.pre_logits && !config.final_ln_after_pool &&
      !config.ls_init_value && config.patch_dropout == 0) {
    return;
  }
  report("timm_model_name",
         "a BiT or Mixer is pooled by the mean (timm_pool: avg) and has no pre_norm, pre_logits, "
         "fc_norm, init_values or patch_dropout");
}

void check_timm(const VisionConfig& config, const Report& report) {
  if (config.family() == TimmFamily::vit) return check_vit(config, report);
  check_no_vit_options(config, report);
  config.family() == TimmFamily::mixer ? check_mixer(config, report) : check_bit(config, report);
}

void check_resnet(const VisionConfig& config, const Report& report) {
  if (config.width % 2 != 0) report("width", fmt::format("must be even for a ResNet, but is {}", config.width));
  if (config.output_width() % config.head_width != 0) {
    report("head_width", fmt::format("{} doesn't divide the attention pool's width {} (32 times the width)",
                                     config.head_width, config.output_width()));
  }
  if (config.image_size % kResnetReduction != 0) {
    report("image_size", fmt::format("must be a multiple of 32 for a ResNet, but is {}", config.image_size));
  }
  if (config.no_ln_pre || config.final_ln_after_pool || config.pool_type != "tok" || config.ls_init_value ||
      config.patch_dropout != 0) {
    report("layers", "a ResNet has no no_ln_pre, final_ln_after_pool, pool_type, ls_init_value or patch_dropout");
  }
}

}  // namespace

void check_vision(const VisionConfig& config, const Report& report) {
  check_layers(config, report);
  if (config.width < 1 || config.head_width < 1 || config.patch_size < 1 || config.image_size < 1) {
    return report("width", "width, head_width, patch_size and image_size must be at least 1");
  }
  const bool is_map = config.is_timm() && config.pool_type == "map";
  if (config.pool_type != "tok" && config.pool_type != "avg" && !is_map) {
    report("pool_type", fmt::format("expected tok or avg, found {}", config.pool_type));
  }
  if (config.proj_type != "linear" && config.proj_type != "none") {
    report("timm_proj", fmt::format("expected linear or none, found {}", config.proj_type));
  }
  if (config.is_timm()) return check_timm(config, report);
  config.is_resnet() ? check_resnet(config, report) : check_vit(config, report);
}

void check_text(const TextConfig& config, const Report& report) {
  if (config.width < 1 || config.heads < 1 || config.layers < 1 || config.context_length < 1 || config.vocab_size < 1) {
    return report("width", "width, heads, layers, context_length and vocab_size must be at least 1");
  }
  if (config.width % config.heads != 0) {
    report("heads", fmt::format("{} don't divide the width {}", config.heads, config.width));
  }
  static const std::vector<std::string> pools{"argmax", "first", "last", "eos", "map"};
  if (std::find(pools.begin(), pools.end(), config.pool_type) == pools.end()) {
    report("pool_type", fmt::format("expected {}, found {}", fmt::join(pools, ", "), config.pool_type));
  }
  if (config.pool_type == "eos" && !config.eos_id) report("eos_id", "pool_type eos needs the id it pools at");
  if (config.proj_type != "linear" && config.proj_type != "none") {
    report("proj_type", fmt::format("expected linear or none, found {}", config.proj_type));
  }
  if (config.is_bert() && config.context_length > config.max_positions) {
    report("context_length", fmt::format("{} is more than BERT's max_position_embeddings {}", config.context_length,
                                         config.max_positions));
  }
  if (config.is_bert() && config.pool_type != "first") report("pool_type", "a BERT is pooled at the first position");
  check_mlp(config.width, config.mlp_ratio, report);
}

void check_embed_dim(const ModelConfig& config, const Report& report) {
  const auto& vision = config.vision_cfg;
  const auto& text = config.text_cfg;
  if (text.proj_type == "none" && text.width != config.embed_dim) {
    report("embed_dim",
           fmt::format("must be the text's width {} with proj_type none, but is {}", text.width, config.embed_dim));
  }
  if (!vision.has_projection() && vision.output_width() != config.embed_dim) {
    report("embed_dim", fmt::format("must be the image tower's width {} with timm_proj none, but is {}",
                                    vision.output_width(), config.embed_dim));
  }
}

}  // namespace detail

bool VisionConfig::is_resnet() const {
  return !is_timm() && layers.size() == kResnetStages;
}

int64_t VisionConfig::heads() const {
  return output_width() / head_width;
}

int64_t VisionConfig::output_width() const {
  if (family() == TimmFamily::resnetv2) return (width * kBottleneckExpansion) << (layers.size() - 1);
  return is_resnet() ? width * kResnetReduction : width;
}

void validate(const ModelConfig& config) {
  std::vector<std::string> problems;
  const auto report_in = [&](const std::string& parent) {
    return [&problems, parent](const std::string& key, const std::string& message) {
      problems.push_back(parent + key + ": " + message);
    };
  };
  if (config.embed_dim < 1) report_in("")("embed_dim", fmt::format("must be at least 1, but is {}", config.embed_dim));
  detail::check_vision(config.vision_cfg, report_in("vision_cfg."));
  detail::check_text(config.text_cfg, report_in("text_cfg."));
  if (problems.empty()) detail::check_embed_dim(config, report_in(""));
  if (!problems.empty()) throw ConfigError(fmt::format("[model config] {}", fmt::join(problems, "\n")));
}

}  // namespace contrastive::models
