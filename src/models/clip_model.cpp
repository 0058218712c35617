#include "contrastive/models/clip_model.h"

#include <cmath>
#include <map>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "contrastive/core/error.h"

namespace contrastive::models {
namespace {

constexpr double kMaxScale = 100.0;
constexpr double kSmallestNorm = 1e-12;

void append_own(const torch::nn::Module& module, const std::string& prefix, NamedTensors& tensors) {
  for (const auto& item : module.named_parameters(/*recurse=*/false)) tensors.emplace_back(prefix + item.key(), *item);
  for (const auto& item : module.named_buffers(/*recurse=*/false)) tensors.emplace_back(prefix + item.key(), *item);
}

/// A module's tensors, then its children's, in registration order: torch's state_dict order.
void append_all(const torch::nn::Module& module, const std::string& prefix, NamedTensors& tensors) {
  append_own(module, prefix, tensors);
  for (const auto& child : module.named_children()) append_all(*child.value(), prefix + child.key() + ".", tensors);
}

bool ends_with_counter(const std::string& name) {
  return name.ends_with(".num_batches_tracked");
}

std::string shape_of(const torch::Tensor& tensor) {
  return fmt::format("[{}]", fmt::join(tensor.sizes(), ", "));
}

/// Matches the names of a model and of a file, and collects everything that doesn't fit.
class StateMatcher {
 public:
  StateMatcher(const NamedTensors& targets, const NamedTensors& sources) {
    for (const auto& [name, tensor] : sources) {
      if (!sources_.emplace(name, tensor).second) problems_.push_back(fmt::format("{}: twice", name));
    }
    for (const auto& [name, target] : targets) match(name, target);
    for (const auto& [name, source] : sources_) {
      problems_.push_back(fmt::format("{}: unexpected, {}", name, shape_of(source)));
    }
  }

  void throw_if_any_problem() const {
    if (problems_.empty()) return;
    throw CheckpointError(fmt::format("[load_state] {} tensor{} of the weights {} the model:\n  {}", problems_.size(),
                                      problems_.size() == 1 ? "" : "s",
                                      problems_.size() == 1 ? "doesn't fit" : "don't fit",
                                      fmt::join(problems_, "\n  ")));
  }

  void copy() const {
    const at::NoGradGuard no_grad;
    for (const auto& [target, source] : pairs_) {
      auto to = target;
      source.defined() ? to.copy_(source) : to.zero_();
    }
  }

 private:
  void match(const std::string& name, const torch::Tensor& target) {
    const auto found = sources_.find(name);
    if (found == sources_.end()) {
      if (ends_with_counter(name)) return pairs_.emplace_back(target, torch::Tensor()), void();
      problems_.push_back(fmt::format("{}: missing, expected {}", name, shape_of(target)));
      return;
    }
    auto source = found->second;
    sources_.erase(found);
    if (name == "logit_scale" && source.numel() == 1) source = source.reshape(target.sizes());
    if (source.sizes() != target.sizes()) {
      problems_.push_back(fmt::format("{}: expected {}, found {}", name, shape_of(target), shape_of(source)));
    }
    pairs_.emplace_back(target, source);
  }

  std::map<std::string, torch::Tensor> sources_;
  std::vector<std::pair<torch::Tensor, torch::Tensor>> pairs_;
  std::vector<std::string> problems_;
};

}  // namespace

ClipModelImpl::ClipModelImpl(const ModelConfig& config, torch::Device device) : config_(config) {
  validate(config);
  visual = register_module("visual", make_image_tower(config, device));
  const auto activation = config.quick_gelu ? Activation::quick_gelu : Activation::gelu;
  text = register_module("text", TextTransformer(config.text_cfg, config.embed_dim, activation, device));
  logit_scale = register_parameter("logit_scale", at::empty({}, device));
}

void ClipModelImpl::reset_parameters(at::Generator generator) {
  visual->reset_parameters(generator);
  text->reset_parameters(generator);
  const at::NoGradGuard no_grad;
  logit_scale.fill_(config_.init_logit_scale);
}

torch::Tensor ClipModelImpl::encode_image(const torch::Tensor& images) {
  return visual->forward(images);
}

torch::Tensor ClipModelImpl::encode_text(const torch::Tensor& tokens) {
  return text->forward(tokens);
}

ClipOutput ClipModelImpl::forward(const torch::Tensor& images, const torch::Tensor& tokens) {
  TORCH_CHECK(images.size(0) == tokens.size(0), "[ClipModel] images and tokens must have the same number of rows, but ",
              "are ", images.sizes(), " and ", tokens.sizes());
  return {l2_normalize(encode_image(images)), l2_normalize(encode_text(tokens)), logit_scale.exp()};
}

NamedTensors ClipModelImpl::state() const {
  NamedTensors tensors;
  append_own(*text, "", tensors);
  append_own(*this, "", tensors);
  append_all(*visual, "visual.", tensors);
  for (const auto& child : text->named_children()) append_all(*child.value(), child.key() + ".", tensors);
  return tensors;
}

NamedTensors ClipModelImpl::named_trainable() const {
  auto tensors = state();
  std::erase_if(tensors, [](const auto& item) { return !item.second.requires_grad(); });
  return tensors;
}

void ClipModelImpl::load_state(const NamedTensors& tensors) {
  const StateMatcher matcher(state(), tensors);
  matcher.throw_if_any_problem();
  matcher.copy();
}

void ClipModelImpl::clamp_logit_scale() {
  const at::NoGradGuard no_grad;
  logit_scale.clamp_(0, std::log(kMaxScale));
}

int64_t parameter_count(const ModelConfig& config) {
  int64_t count = 0;
  for (const auto& [name, tensor] : ClipModelImpl(config, torch::kMeta).named_trainable()) count += tensor.numel();
  return count;
}

torch::Tensor l2_normalize(const torch::Tensor& features) {
  const auto x = features.to(at::promote_types(features.scalar_type(), at::kFloat));
  return x / at::linalg_vector_norm(x, 2, at::IntArrayRef{-1}, /*keepdim=*/true).clamp_min(kSmallestNorm);
}

}  // namespace contrastive::models
