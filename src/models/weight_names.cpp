#include "contrastive/models/weight_names.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <optional>
#include <set>
#include <string_view>
#include <utility>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "contrastive/core/error.h"

#include "models/timm_names.h"

namespace contrastive::models {
namespace {

using Tensors = std::vector<LazyTensor>;

constexpr int64_t kOpenAiHeadWidth = 64;
constexpr int64_t kResnetReduction = 32;

bool has(const Tensors& tensors, std::string_view name) {
  return std::any_of(tensors.begin(), tensors.end(), [&](const auto& tensor) { return tensor.name == name; });
}

bool is_openai_size(const std::string& name) {
  return name == "input_resolution" || name == "context_length" || name == "vocab_size";
}

/// What a state dict may hold beside the weights: buffers of older versions that follow from the config.
bool is_no_weight(const std::string& name) {
  return is_openai_size(name) || name.ends_with("position_ids") || name == "attn_mask" || name.ends_with(".attn_mask");
}

LazyTensor renamed(LazyTensor tensor, std::string name) {
  tensor.name = std::move(name);
  return tensor;
}

LazyTensor transposed(LazyTensor tensor, std::string name) {
  if (tensor.shape.size() != 2) return renamed(std::move(tensor), std::move(name));  // refused later by its shape
  std::swap(tensor.shape[0], tensor.shape[1]);
  return {std::move(name), tensor.dtype, tensor.shape, [load = tensor.load] { return load().t(); }};
}

LazyTensor reshaped(LazyTensor tensor, std::string name, std::vector<int64_t> shape) {
  return {std::move(name), tensor.dtype, shape, [load = tensor.load, shape] { return load().reshape(shape); }};
}

/// Rows [begin, begin + size) of the first dimension.
LazyTensor rows_of(const LazyTensor& tensor, std::string name, int64_t begin, int64_t size) {
  auto shape = tensor.shape;
  shape[0] = size;
  return {std::move(name), tensor.dtype, shape,
          [load = tensor.load, begin, size] { return load().narrow(0, begin, size); }};
}

LazyTensor converted(LazyTensor tensor, at::ScalarType dtype) {
  if (tensor.dtype == dtype) return tensor;
  return {tensor.name, dtype, tensor.shape, [load = tensor.load, dtype] { return load().to(dtype); }};
}

using Parts = detail::NameParts;
using detail::replace_parts;

/// Collects the rows of q, k and v, in whatever order they come.
class QkvPacker {
 public:
  /// The packed tensor, when `part` was the last of its three.
  std::optional<LazyTensor> add(const std::string& packed_name, size_t place, LazyTensor part) {
    auto& triple = waiting_[packed_name];
    triple.at(place) = std::move(part);
    if (!triple[0].load || !triple[1].load || !triple[2].load) return std::nullopt;
    auto done = std::move(triple);
    waiting_.erase(packed_name);
    return pack(packed_name, std::move(done));
  }

  void throw_if_incomplete() const {
    if (waiting_.empty()) return;
    throw CheckpointError(fmt::format("[weights] {} has not all three of q, k and v", waiting_.begin()->first));
  }

 private:
  using Triple = std::array<LazyTensor, 3>;

  static LazyTensor pack(const std::string& name, Triple parts) {
    for (const auto& part : parts) {
      if (part.shape != parts[0].shape || part.dtype != parts[0].dtype || part.shape.empty()) {
        throw CheckpointError(fmt::format("[weights] q, k and v of {} differ in shape or dtype", name));
      }
    }
    auto shape = parts[0].shape;
    shape[0] *= 3;
    const auto dtype = parts[0].dtype;
    return {name, dtype, shape, [parts = std::move(parts)] {
              return at::cat({parts[0].load(), parts[1].load(), parts[2].load()});
            }};
  }

  std::map<std::string, Triple> waiting_;
};

const Parts kHfBlockParts = {{"encoder.layers.", "transformer.resblocks."},
                             {".layer_norm1.", ".ln_1."},
                             {".layer_norm2.", ".ln_2."},
                             {".self_attn.", ".attn."},
                             {".mlp.fc1.", ".mlp.c_fc."},
                             {".mlp.fc2.", ".mlp.c_proj."}};

const Parts kHfTextParts = {{"text_model.", ""},
                            {"embeddings.token_embedding.", "token_embedding."},
                            {"embeddings.position_embedding.weight", "positional_embedding"},
                            {"final_layer_norm.", "ln_final."}};

const Parts kHfVisionParts = {{"vision_model.", "visual."},
                              {"embeddings.patch_embedding.", "conv1."},
                              {"embeddings.class_embedding", "class_embedding"},
                              {"embeddings.position_embedding.weight", "positional_embedding"},
                              {"pre_layrnorm.", "ln_pre."},  // sic
                              {"post_layernorm.", "ln_post."}};

/// The name of q, k or v as (name of the packed tensor, 0 to 2); nothing if it is none.
std::optional<std::pair<std::string, size_t>> packed_place(const std::string& name) {
  constexpr std::string_view kLetters = "qkv";
  for (size_t place = 0; place < kLetters.size(); ++place) {
    const auto part = fmt::format(".attn.{}_proj.", kLetters[place]);
    const auto found = name.find(part);
    if (found != std::string::npos) {
      return std::pair(name.substr(0, found) + ".attn.in_proj_" + name.substr(found + part.size()), place);
    }
  }
  return std::nullopt;
}

/// Both towers' blocks under the names of CLIP's own, q, k and v packed.
Tensors from_hf(Tensors tensors) {
  Tensors result;
  QkvPacker packer;
  for (auto& tensor : tensors) {
    if (is_no_weight(tensor.name)) continue;
    const bool is_text = tensor.name.starts_with("text_model.");
    auto name = replace_parts(replace_parts(tensor.name, is_text ? kHfTextParts : kHfVisionParts), kHfBlockParts);
    if (const auto packed = packed_place(name)) {
      if (auto done = packer.add(packed->first, packed->second, std::move(tensor))) result.push_back(std::move(*done));
    } else if (name == "text_projection.weight") {
      result.push_back(transposed(std::move(tensor), "text_projection"));
    } else if (name == "visual_projection.weight") {
      result.push_back(transposed(std::move(tensor), "visual.proj"));
    } else {
      result.push_back(renamed(std::move(tensor), name));
    }
  }
  packer.throw_if_incomplete();
  return result;
}

/// SigLIP's image tower has timm's names in open_clip.
std::string timm_name(const std::string& name) {
  const std::string prefix = "visual.";
  return "visual.trunk." + detail::to_timm_name(name.substr(prefix.size()));
}

/// A tensor of transformers' SiglipMultiheadAttentionPoolingHead; `part` is its name in there.
void append_siglip_head(LazyTensor tensor, const std::string& part, Tensors& result) {
  const std::string pool = "visual.trunk.attn_pool.";
  const bool is_packed = part.starts_with("attention.in_proj_");
  if (is_packed && !tensor.shape.empty() && tensor.shape[0] % 3 == 0) {
    const auto width = tensor.shape[0] / 3;
    const auto kind = part.substr(std::string("attention.in_proj_").size());
    result.push_back(rows_of(tensor, pool + "q." + kind, 0, width));
    result.push_back(rows_of(tensor, pool + "kv." + kind, width, 2 * width));
    return;
  }
  static const Parts kParts = {{"probe", "latent"},
                               {"attention.out_proj.", "proj."},
                               {"layernorm.", "norm."},
                               {"mlp.c_fc.", "mlp.fc1."},
                               {"mlp.c_proj.", "mlp.fc2."}};
  result.push_back(renamed(std::move(tensor), pool + replace_parts(part, kParts)));
}

Tensors from_hf_siglip(Tensors tensors) {
  const std::string head = "visual.head.";
  Tensors result;
  for (auto& tensor : from_hf(std::move(tensors))) {
    const auto name = tensor.name;
    if (name.starts_with(head)) {
      append_siglip_head(std::move(tensor), name.substr(head.size()), result);
    } else if (name == "visual.positional_embedding" && tensor.shape.size() == 2) {
      const std::vector<int64_t> shape{1, tensor.shape[0], tensor.shape[1]};
      result.push_back(reshaped(std::move(tensor), timm_name(name), shape));
    } else if (name.starts_with("visual.")) {
      result.push_back(renamed(std::move(tensor), timm_name(name)));
    } else if (name.starts_with("head.")) {
      result.push_back(renamed(std::move(tensor), "text_projection." + name.substr(std::string("head.").size())));
    } else {
      result.push_back(std::move(tensor));
    }
  }
  return result;
}

bool is_text_name(const std::string& name) {
  return !name.starts_with("visual.") && name != "logit_scale" && name != "logit_bias";
}

void set_text_prefix(Tensors& tensors, bool custom_text) {
  const std::string prefix = "text.";
  for (auto& tensor : tensors) {
    if (!is_text_name(tensor.name)) continue;
    const bool prefixed = tensor.name.starts_with(prefix);
    if (custom_text && !prefixed) tensor.name = prefix + tensor.name;
    if (!custom_text && prefixed) tensor.name = tensor.name.substr(prefix.size());
  }
}

/// Rows of one tensor of a block, for both towers of transformers' CLIPModel.
void append_hf_block(const LazyTensor& tensor, const std::string& name, Tensors& result) {
  const auto packed = name.find(".attn.in_proj_");
  if (packed == std::string::npos) {
    static const Parts kParts = {{".ln_1.", ".layer_norm1."},
                                 {".ln_2.", ".layer_norm2."},
                                 {".attn.", ".self_attn."},
                                 {".mlp.c_fc.", ".mlp.fc1."},
                                 {".mlp.c_proj.", ".mlp.fc2."}};
    return result.push_back(renamed(tensor, replace_parts(name, kParts)));
  }
  const auto width = tensor.shape.at(0) / 3;
  const auto kind = name.substr(packed + std::string(".attn.in_proj_").size());
  int64_t place = 0;
  for (const char* letter : {"q", "k", "v"}) {
    result.push_back(rows_of(tensor, fmt::format("{}.self_attn.{}_proj.{}", name.substr(0, packed), letter, kind),
                             width * place++, width));
  }
}

void check_hf_clip(const ModelConfig& config) {
  const auto& vision = config.vision_cfg;
  const auto& text = config.text_cfg;
  std::vector<std::string> problems;
  if (vision.is_resnet()) problems.emplace_back("a ResNet");
  if (vision.is_timm()) problems.emplace_back("an image tower of timm's");
  if (text.is_bert()) problems.emplace_back("a BERT");
  if (vision.no_ln_pre || vision.pool_type != "tok") problems.emplace_back("CLIPA's image tower");
  if (vision.ls_init_value || text.ls_init_value) problems.emplace_back("LayerScale");
  if (text.no_causal_mask || text.pool_type == "first" || text.pool_type == "last") {
    problems.emplace_back("a text tower without causal mask, or pooled at the first or last position");
  }
  if (text.proj_type == "none" || text.proj_bias) problems.emplace_back("a text projection that is not a plain matrix");
  if (config.init_logit_bias) problems.emplace_back("a logit bias");
  if (problems.empty()) return;
  throw ConfigError(fmt::format("[convert] transformers' CLIPModel can't hold {}", fmt::join(problems, "; ")));
}

/// The dtype of a tensor in OpenAI's files.
at::ScalarType openai_dtype(const std::string& name) {
  const bool is_norm = name.find(".ln_") != std::string::npos || name.starts_with("ln_") ||
                       name.find(".bn") != std::string::npos || name.find("downsample.1.") != std::string::npos;
  if (name.ends_with("num_batches_tracked")) return at::kLong;
  if (is_norm || name.find("embedding") != std::string::npos || name == "logit_scale") return at::kFloat;
  return at::kHalf;
}

void check_openai(const ModelConfig& config) {
  const auto& vision = config.vision_cfg;
  const auto& text = config.text_cfg;
  std::vector<std::string> problems;
  if (!config.quick_gelu) problems.emplace_back("the exact GELU (it always computes QuickGELU)");
  if (vision.head_width != kOpenAiHeadWidth) {
    problems.push_back(fmt::format("image heads of width {} (always 64)", vision.head_width));
  }
  if (text.width != text.heads * kOpenAiHeadWidth) {
    problems.push_back(fmt::format("text heads of width {} (always 64)", text.width / text.heads));
  }
  if (vision.no_ln_pre || vision.pool_type != "tok" || vision.is_timm() || text.no_causal_mask ||
      text.pool_type != "argmax" || text.proj_bias || text.proj_type == "none" || config.init_logit_bias ||
      vision.ls_init_value || text.ls_init_value || vision.norm_eps != 1e-5 || text.norm_eps != 1e-5 ||
      (!vision.is_resnet() && vision.mlp_ratio != 4.0) || text.mlp_ratio != 4.0) {
    problems.emplace_back("towers other than those of its nine models");
  }
  if (problems.empty()) return;
  throw ConfigError(fmt::format("[convert] OpenAI's code can't hold {}", fmt::join(problems, "; ")));
}

/// Shapes by name, with errors that say what was looked for.
class Shapes {
 public:
  explicit Shapes(const Tensors& tensors) {
    for (const auto& tensor : tensors) shapes_[tensor.name] = tensor.shape;
  }

  bool has(const std::string& name) const { return shapes_.contains(name); }

  int64_t at(const std::string& name, size_t dim) const {
    const auto found = shapes_.find(name);
    if (found == shapes_.end() || found->second.size() <= dim) {
      throw CheckpointError(
          fmt::format("[weights] the model can't be told from its weights: there is no {} of {} or "
                      "more dimensions; name it (--model ViT-B-32)",
                      name, dim + 1));
    }
    return found->second[dim];
  }

  /// Number of different words after the prefix, up to the next dot.
  int64_t count_children(const std::string& prefix) const {
    std::set<std::string> children;
    for (const auto& [name, shape] : shapes_) {
      if (name.starts_with(prefix))
        children.insert(name.substr(prefix.size(), name.find('.', prefix.size()) - prefix.size()));
    }
    return static_cast<int64_t>(children.size());
  }

 private:
  std::map<std::string, std::vector<int64_t>> shapes_;
};

int64_t grid_of(int64_t positions) {
  return static_cast<int64_t>(std::llround(std::sqrt(static_cast<double>(std::max<int64_t>(positions - 1, 0)))));
}

VisionConfig infer_vision(const Shapes& shapes) {
  VisionConfig vision;
  vision.head_width = kOpenAiHeadWidth;
  if (shapes.has("visual.proj")) {
    vision.width = shapes.at("visual.conv1.weight", 0);
    vision.patch_size = shapes.at("visual.conv1.weight", 3);
    vision.layers = {shapes.count_children("visual.transformer.resblocks.")};
    vision.image_size = vision.patch_size * grid_of(shapes.at("visual.positional_embedding", 0));
  } else {
    vision.layers.clear();
    for (int stage = 1; stage <= 4; ++stage) {
      vision.layers.push_back(shapes.count_children(fmt::format("visual.layer{}.", stage)));
    }
    vision.width = shapes.at("visual.layer1.0.conv1.weight", 0);
    vision.image_size = kResnetReduction * grid_of(shapes.at("visual.attnpool.positional_embedding", 0));
  }
  return vision;
}

}  // namespace

WeightLayout detect_layout(const Tensors& tensors) {
  if (has(tensors, "vision_model.head.probe")) return WeightLayout::hf_siglip;
  if (has(tensors, "vision_model.embeddings.class_embedding")) return WeightLayout::hf_clip;
  const bool is_native = std::any_of(tensors.begin(), tensors.end(),
                                     [](const auto& tensor) { return tensor.name.starts_with("visual."); });
  if (is_native) return has(tensors, "input_resolution") ? WeightLayout::openai : WeightLayout::open_clip;
  std::vector<std::string> first;
  for (const auto& tensor : tensors) {
    if (first.size() < 3) first.push_back(tensor.name);
  }
  throw CheckpointError(
      fmt::format("[weights] {} tensors with names that are not open_clip's, OpenAI's or those of "
                  "transformers' CLIPModel or SiglipModel, as {}",
                  tensors.size(), fmt::join(first, ", ")));
}

Tensors strip_wrapper_prefix(Tensors tensors) {
  for (bool again = !tensors.empty(); again;) {
    again = false;
    for (const std::string prefix : {"module.", "_orig_mod.", "model."}) {
      const bool all = std::all_of(tensors.begin(), tensors.end(),
                                   [&](const auto& tensor) { return tensor.name.starts_with(prefix); });
      if (!all) continue;
      for (auto& tensor : tensors) tensor.name = tensor.name.substr(prefix.size());
      again = true;
    }
  }
  return tensors;
}

Tensors to_open_clip_names(Tensors tensors, WeightLayout layout, bool custom_text) {
  if (layout == WeightLayout::hf_clip) tensors = from_hf(std::move(tensors));
  if (layout == WeightLayout::hf_siglip) tensors = from_hf_siglip(std::move(tensors));
  std::erase_if(tensors, [](const auto& tensor) { return is_no_weight(tensor.name); });
  set_text_prefix(tensors, custom_text);
  return tensors;
}

Tensors to_hf_clip_names(const Tensors& tensors, const ModelConfig& config) {
  check_hf_clip(config);
  static const std::map<std::string, std::string> kNames = {
      {"logit_scale", "logit_scale"},
      {"positional_embedding", "text_model.embeddings.position_embedding.weight"},
      {"token_embedding.weight", "text_model.embeddings.token_embedding.weight"},
      {"ln_final.weight", "text_model.final_layer_norm.weight"},
      {"ln_final.bias", "text_model.final_layer_norm.bias"},
      {"visual.class_embedding", "vision_model.embeddings.class_embedding"},
      {"visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"},
      {"visual.conv1.weight", "vision_model.embeddings.patch_embedding.weight"},
      {"visual.ln_pre.weight", "vision_model.pre_layrnorm.weight"},
      {"visual.ln_pre.bias", "vision_model.pre_layrnorm.bias"},
      {"visual.ln_post.weight", "vision_model.post_layernorm.weight"},
      {"visual.ln_post.bias", "vision_model.post_layernorm.bias"}};
  static const Parts kTextBlocks = {{"transformer.resblocks.", "text_model.encoder.layers."}};
  static const Parts kVisionBlocks = {{"visual.transformer.resblocks.", "vision_model.encoder.layers."}};
  auto plain = tensors;
  set_text_prefix(plain, /*custom_text=*/false);
  Tensors result;
  for (const auto& tensor : plain) {
    const auto& name = tensor.name;
    if (const auto found = kNames.find(name); found != kNames.end()) {
      result.push_back(renamed(tensor, found->second));
    } else if (name == "text_projection") {
      result.push_back(transposed(tensor, "text_projection.weight"));
    } else if (name == "visual.proj") {
      result.push_back(transposed(tensor, "visual_projection.weight"));
    } else {
      const bool is_vision = name.starts_with("visual.");
      append_hf_block(tensor, replace_parts(name, is_vision ? kVisionBlocks : kTextBlocks), result);
    }
  }
  return result;
}

Tensors to_openai_weights(const Tensors& tensors, const ModelConfig& config) {
  check_openai(config);
  auto plain = tensors;
  set_text_prefix(plain, /*custom_text=*/false);
  Tensors result;
  for (const auto& tensor : plain) result.push_back(converted(tensor, openai_dtype(tensor.name)));
  return result;
}

bool has_openai_dtypes(const Tensors& tensors) {
  return std::all_of(tensors.begin(), tensors.end(), [](const auto& tensor) {
    return tensor.dtype == openai_dtype(tensor.name) || is_openai_size(tensor.name);
  });
}

ModelConfig infer_openai_config(const Tensors& tensors) {
  const Shapes shapes(tensors);
  ModelConfig config;
  config.quick_gelu = true;
  config.embed_dim = shapes.at("text_projection", 1);
  config.vision_cfg = infer_vision(shapes);
  config.text_cfg.context_length = shapes.at("positional_embedding", 0);
  config.text_cfg.vocab_size = shapes.at("token_embedding.weight", 0);
  config.text_cfg.width = shapes.at("ln_final.weight", 0);
  config.text_cfg.heads = std::max<int64_t>(1, config.text_cfg.width / kOpenAiHeadWidth);
  config.text_cfg.layers = shapes.count_children("transformer.resblocks.");
  try {
    validate(config);
  } catch (const ConfigError& error) {
    throw CheckpointError(fmt::format("[weights] the shapes are not those of a CLIP model: {}", error.what()));
  }
  return config;
}

}  // namespace contrastive::models
