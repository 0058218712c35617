#include "contrastive/models/clip_model.h"

#include <cmath>
#include <map>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "contrastive/core/error.h"
#include "contrastive/models/layers.h"

#include "models/state_matcher.h"

namespace contrastive::models {

using detail::append_all;
using detail::append_own;
using detail::StateMatcher;

namespace {

constexpr double kSmallestNorm = 1e-12;

}  // namespace

ClipModelImpl::ClipModelImpl(const ModelConfig& config, torch::Device device, ImageTowerPart image_part)
    : config_(config) {
  validate(config);
  visual = register_module("visual", make_image_tower(config, device, image_part));
  text = register_module("text", make_text_tower(config, device));
  logit_scale = register_parameter("logit_scale", at::empty({}, device));
  if (config.init_logit_bias) logit_bias = register_parameter("logit_bias", at::empty({}, device));
  visual->checkpoint_activations(config.checkpoint_activations);
  text->checkpoint_activations(config.checkpoint_activations);
  if (image_part == ImageTowerPart::projection) {
    for (const auto& tensor : ClipModelImpl(config, torch::kMeta).state()) absent_.insert(tensor.first);
    for (const auto& tensor : state()) absent_.erase(tensor.first);
  }
}

void ClipModelImpl::set_batch_norm_group(const distributed::ProcessGroup& group) {
  for (const auto& module : modules()) {
    if (auto* batch_norm = module->as<BatchNorm2dImpl>()) batch_norm->set_group(group);
  }
}

void ClipModelImpl::reset_parameters(at::Generator generator) {
  visual->reset_parameters(generator);
  text->reset_parameters(generator);
  reset_scale();
}

void ClipModelImpl::reset_scale() {
  const at::NoGradGuard no_grad;
  logit_scale.fill_(config_.init_logit_scale);
  if (logit_bias.defined()) logit_bias.fill_(*config_.init_logit_bias);
}

torch::Tensor ClipModelImpl::encode_image(const torch::Tensor& images) {
  return visual->forward(images);
}

torch::Tensor ClipModelImpl::encode_places(const torch::Tensor& images) {
  return visual->project(visual->forward_places(images));
}

torch::Tensor ClipModelImpl::encode_text(const torch::Tensor& tokens) {
  return text->forward(tokens);
}

ClipOutput ClipModelImpl::forward(const torch::Tensor& images, const torch::Tensor& tokens) {
  TORCH_CHECK(images.size(0) == tokens.size(0), "[ClipModel] images and tokens must have the same number of rows, but ",
              "are ", images.sizes(), " and ", tokens.sizes());
  return {l2_normalize(encode_image(images)), l2_normalize(encode_text(tokens)), logit_scale.exp(), logit_bias};
}

ClipOutput ClipModelImpl::forward_features(const torch::Tensor& features, const torch::Tensor& tokens) {
  TORCH_CHECK(features.dim() == 2 && features.size(0) == tokens.size(0) && features.size(1) == visual->feature_width(),
              "[ClipModel] features must be [", tokens.size(0), ", ", visual->feature_width(), "], but are ",
              features.sizes());
  return {l2_normalize(visual->project(features)), l2_normalize(encode_text(tokens)), logit_scale.exp(), logit_bias};
}

NamedTensors ClipModelImpl::state() const {
  NamedTensors tensors;
  if (!config_.custom_text) append_own(*text, "", tensors);
  append_own(*this, "", tensors);
  NamedTensors visual_tensors;
  append_all(*visual, "", visual_tensors);
  for (auto& [name, tensor] : visual_tensors) tensors.emplace_back("visual." + visual->checkpoint_name(name), tensor);
  const std::string prefix = config_.custom_text ? "text." : "";
  NamedTensors text_tensors;
  if (config_.custom_text) append_own(*text, "", text_tensors);
  for (const auto& child : text_children()) append_all(*child.second, child.first + ".", text_tensors);
  for (auto& [name, tensor] : text_tensors) tensors.emplace_back(prefix + text->checkpoint_name(name), tensor);
  return tensors;
}

std::vector<std::pair<std::string, std::shared_ptr<torch::nn::Module>>> ClipModelImpl::text_children() const {
  auto children = text->named_children().pairs();
  if (config_.custom_text && !config_.text_cfg.is_bert()) std::swap(children.at(0), children.at(1));
  return children;
}

NamedTensors ClipModelImpl::named_trainable() const {
  auto tensors = state();
  std::erase_if(tensors, [](const auto& item) { return !item.second.requires_grad(); });
  return tensors;
}

std::vector<std::string> ClipModelImpl::load_state(const std::vector<LazyTensor>& tensors,
                                                   const std::function<bool(const std::string&)>& may_be_missing) {
  auto own = tensors;
  std::erase_if(own, [this](const auto& tensor) { return absent_.contains(tensor.name); });
  const StateMatcher matcher(state(), own, may_be_missing);
  matcher.throw_if_any_problem();
  matcher.copy();
  return matcher.kept();
}

void ClipModelImpl::load_state(const NamedTensors& tensors) {
  load_state(lazy(tensors));
}

void ClipModelImpl::clamp_logit_scale(double max_scale) {
  const at::NoGradGuard no_grad;
  logit_scale.clamp_(0, std::log(max_scale));
}

CompleteState complete_state(const ModelConfig& config, const std::vector<LazyTensor>& tensors,
                             const std::function<bool(const std::string&)>& may_be_missing) {
  const auto shared = std::make_shared<const std::vector<LazyTensor>>(tensors);
  const StateMatcher matcher(ClipModelImpl(config, torch::kMeta).state(), *shared, may_be_missing);
  matcher.throw_if_any_problem();
  CompleteState result{matcher.ordered(), matcher.kept()};
  for (auto& tensor : result.tensors) tensor.load = [shared, load = std::move(tensor.load)] { return load(); };
  return result;
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
