#include "contrastive/models/tower_weights.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "contrastive/core/error.h"

#include "models/tower_readers.h"

namespace contrastive::models {
namespace {

using Tensors = std::vector<LazyTensor>;

// What the training of LiT's and SigLIP's towers started with.
constexpr double kFirstScale = 10;
constexpr double kFirstBias = -10;

bool any_starts_with(const Tensors& tensors, std::string_view prefix) {
  return std::any_of(tensors.begin(), tensors.end(),
                     [&](const auto& tensor) { return tensor.name.starts_with(prefix); });
}

bool has(const Tensors& tensors, std::string_view name) {
  return std::any_of(tensors.begin(), tensors.end(), [&](const auto& tensor) { return tensor.name == name; });
}

/// Those below a prefix, without it.
Tensors below(Tensors tensors, std::string_view prefix) {
  std::erase_if(tensors, [&](const auto& tensor) { return !tensor.name.starts_with(prefix); });
  for (auto& tensor : tensors) tensor.name.erase(0, prefix.size());
  return tensors;
}

/// The first words of the names, up to '/' or '.', for messages.
std::string root_names(const Tensors& tensors) {
  constexpr size_t kMaxShown = 12;
  std::set<std::string> names;
  for (const auto& tensor : tensors) names.insert(tensor.name.substr(0, tensor.name.find_first_of("/.")));
  std::vector<std::string> shown;
  for (const auto& name : names) {
    if (shown.size() < kMaxShown) shown.push_back(name);
  }
  return fmt::format("{}{}", fmt::join(shown, ", "), names.size() > kMaxShown ? ", ..." : "");
}

[[noreturn]] void refuse_layout(const std::string& what, const Tensors& tensors) {
  throw CheckpointError(fmt::format("[weights] {} tensors are those of no known {}; their names begin with {}",
                                    tensors.size(), what, root_names(tensors)));
}

void refuse_two_towers(const Tensors& tensors, const std::string& one) {
  if (!has_two_towers(tensors)) return;
  throw CheckpointError(fmt::format("[weights] the file holds two towers; name one (FILE:{})", one));
}

/// The scalar of a file's `t` or `b`.
LazyTensor scalar(detail::TensorSet& set, const std::string& name, const std::string& target) {
  return detail::renamed(detail::reshaped(set.take(name, {1}), {}), target);
}

void append_prefixed(Tensors tensors, const std::string& prefix, Tensors& result) {
  for (auto& tensor : tensors) {
    tensor.name = prefix + tensor.name;
    result.push_back(std::move(tensor));
  }
}

void check_sizes(const ModelConfig& config, const std::string& format) {
  try {
    validate(config);
  } catch (const ConfigError& error) {
    throw CheckpointError(fmt::format("[{}] its shapes are not those of a model: {}", format, error.what()));
  }
}

}  // namespace

Tensors without_training_state(Tensors tensors) {
  for (const std::string_view root : {"opt/target/", "params/"}) {
    if (any_starts_with(tensors, root)) tensors = below(std::move(tensors), root);
  }
  std::erase_if(tensors, [](const auto& tensor) {
    return tensor.name == "step" || tensor.name.starts_with("opt/") || tensor.name.starts_with("extra/");
  });
  return tensors;
}

Tensors select_subtree(Tensors tensors, std::string_view name) {
  tensors = without_training_state(std::move(tensors));
  for (const char separator : {'/', '.'}) {
    const auto prefix = std::string(name) + separator;
    if (any_starts_with(tensors, prefix)) return below(std::move(tensors), prefix);
  }
  throw CheckpointError(
      fmt::format("[weights] there is nothing below '{}'; the names begin with {}", name, root_names(tensors)));
}

bool has_two_towers(const Tensors& tensors) {
  const auto plain = without_training_state(tensors);
  return any_starts_with(plain, "img/") && any_starts_with(plain, "txt/");
}

ImageTowerWeights image_tower_weights(Tensors tensors, const ImageTowerOptions& options) {
  tensors = without_training_state(std::move(tensors));
  refuse_two_towers(tensors, "img");
  if (any_starts_with(tensors, "MixerBlock_0/") || any_starts_with(tensors, "Mixer/encoderblock_0/")) {
    return detail::read_jax_mixer(std::move(tensors), options);
  }
  if (any_starts_with(tensors, "resnet/root_block/")) return detail::read_jax_bit(std::move(tensors), options);
  if (any_starts_with(tensors, "Transformer/")) return detail::read_jax_vit(std::move(tensors), options);
  if (detail::is_open_clip(tensors)) return detail::read_open_clip_tower(std::move(tensors), options);
  if (detail::is_timm(tensors)) return detail::read_timm_tower(std::move(tensors), options);
  refuse_layout("image tower", tensors);
}

TextTowerWeights text_tower_weights(Tensors tensors, const TextTowerOptions& options) {
  tensors = without_training_state(std::move(tensors));
  refuse_two_towers(tensors, "txt");
  if (has(tensors, "Embed_0/embedding")) return detail::read_jax_text(std::move(tensors), options);
  if (any_starts_with(tensors, "BertEncoder_0/")) return detail::read_jax_bert(std::move(tensors), options);
  if (detail::is_hf_bert(tensors)) return detail::read_hf_bert(std::move(tensors), options);
  refuse_layout("text tower", tensors);
}

TwoTowerWeights two_tower_weights(Tensors tensors, const TwoTowerOptions& options) {
  tensors = without_training_state(std::move(tensors));
  if (!has_two_towers(tensors)) refuse_layout("two towers (img/ and txt/)", tensors);
  auto image = image_tower_weights(below(tensors, "img/"), options.image);
  auto text = text_tower_weights(below(tensors, "txt/"), options.text);
  TwoTowerWeights model;
  model.format = fmt::format("{} and {}", image.format, text.format);
  if (image.embed_dim != text.embed_dim) {
    throw CheckpointError(fmt::format("[{}] the towers' embeddings differ in width: {} of images, {} of texts",
                                      model.format, image.embed_dim, text.embed_dim));
  }
  std::erase_if(tensors,
                [](const auto& tensor) { return tensor.name.starts_with("img/") || tensor.name.starts_with("txt/"); });
  detail::TensorSet rest(model.format, std::move(tensors));
  model.config = {.embed_dim = image.embed_dim,
                  .vision_cfg = std::move(image.config),
                  .text_cfg = std::move(text.config),
                  .quick_gelu = false,
                  .init_logit_scale = std::log(kFirstScale),
                  .custom_text = true};
  append_prefixed(std::move(image.tensors), "visual.", model.tensors);
  append_prefixed(std::move(text.tensors), "text.", model.tensors);
  model.tensors.push_back(scalar(rest, "t", "logit_scale"));
  if (rest.has("b")) {
    model.config.init_logit_bias = kFirstBias;
    model.tensors.push_back(scalar(rest, "b", "logit_bias"));
  }
  rest.finish();
  check_sizes(model.config, model.format);
  return model;
}

}  // namespace contrastive::models
