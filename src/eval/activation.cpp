#include "eval/activation.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <optional>
#include <string_view>

#include <fmt/format.h>

#include "contrastive/core/error.h"
#include "contrastive/core/log.h"
#include "contrastive/models/weight_names.h"

namespace contrastive::eval::detail {
namespace {

constexpr const char* kMetadataKey = "contrastive.quick_gelu";

/// Words in the names of published weights. Source: open_clip 3.3.0, pretrained.py.
struct Family {
  std::string_view word;
  bool quick_gelu;
};

constexpr std::array kFamilies{Family{"openai", true},      Family{"metaclip", true}, Family{"dfn", true},
                               Family{"quickgelu", true},   Family{"laion2b", false}, Family{"datacomp", false},
                               Family{"commonpool", false}, Family{"laion5b", false}};

const char* name_of(bool quick_gelu) {
  return quick_gelu ? "QuickGELU" : "the exact GELU";
}

/// What is known about the weights, and from where.
struct Evidence {
  bool quick_gelu;
  std::string source;
};

std::optional<Evidence> recorded(const TensorFile& weights) {
  const auto found = weights.metadata.find(kMetadataKey);
  if (found == weights.metadata.end()) return std::nullopt;
  return Evidence{found->second == "true", "its header"};
}

std::optional<Evidence> from_name(const std::filesystem::path& file) {
  auto name = (file.parent_path().filename() / file.filename()).string();
  std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
  for (const auto& family : kFamilies) {
    if (name.find(family.word) != std::string::npos) {
      return Evidence{family.quick_gelu, fmt::format("its name ('{}')", family.word)};
    }
  }
  return std::nullopt;
}

std::optional<Evidence> evidence(const std::filesystem::path& file, const TensorFile& weights) {
  if (const auto found = recorded(weights)) return found;
  if (is_openai(weights)) return Evidence{true, "OpenAI's format"};
  return from_name(file);
}

}  // namespace

std::map<std::string, std::string> weights_metadata(const models::ModelConfig& config) {
  return {{"format", "pt"}, {kMetadataKey, config.quick_gelu ? "true" : "false"}};
}

bool is_openai(const TensorFile& weights) {
  const auto& tensors = weights.tensors;
  const bool has_sizes =
      std::any_of(tensors.begin(), tensors.end(), [](const auto& tensor) { return tensor.name == "input_resolution"; });
  const bool is_native = std::any_of(tensors.begin(), tensors.end(),
                                     [](const auto& tensor) { return tensor.name.starts_with("visual."); });
  return is_native && (has_sizes || models::has_openai_dtypes(tensors));
}

void check_recorded_activation(const std::filesystem::path& file, const TensorFile& weights,
                               const models::ModelConfig& config) {
  const auto known = recorded(weights);
  if (!known || known->quick_gelu == config.quick_gelu) return;
  throw CheckpointError(fmt::format("[{}] was trained with {} (by {}), but the config beside it says quick_gelu: {}",
                                    file.string(), name_of(known->quick_gelu), known->source, config.quick_gelu));
}

void check_activation(const std::filesystem::path& file, const TensorFile& weights, const models::ModelConfig& config,
                      const std::string& model_name) {
  if (config.vision_cfg.is_timm()) return;
  const auto known = evidence(file, weights);
  if (!known) {
    log(LogLevel::warning,
        fmt::format(
            "[{}] does not say which GELU it was trained with; {} computes {}. If that is wrong, results are "
            "silently worse: OpenAI's weights, open_clip's laion400m_e31 and _e32 of ViT-B-32, MetaCLIP and DFN "
            "need a -quickgelu model",
            file.string(), model_name, name_of(config.quick_gelu)));
    return;
  }
  if (known->quick_gelu == config.quick_gelu) return;
  throw ConfigError(fmt::format("[{}] was trained with {} (by {}), but the model {} computes {}; name {}",
                                file.string(), name_of(known->quick_gelu), known->source, model_name,
                                name_of(config.quick_gelu),
                                known->quick_gelu ? "its -quickgelu variant" : "the model without -quickgelu"));
}

}  // namespace contrastive::eval::detail
