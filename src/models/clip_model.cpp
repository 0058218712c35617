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

std::string shape_text(at::IntArrayRef sizes) {
  return fmt::format("[{}]", fmt::join(sizes, ", "));
}

bool is_logit_scalar(const std::string& name) {
  return name == "logit_scale" || name == "logit_bias";
}

/// Matches the names of a model and of a file, and collects everything that doesn't fit.
class StateMatcher {
 public:
  StateMatcher(const NamedTensors& targets, const std::vector<LazyTensor>& sources,
               const std::function<bool(const std::string&)>& may_be_missing)
      : may_be_missing_(may_be_missing) {
    for (const auto& source : sources) {
      if (!sources_.emplace(source.name, &source).second) problems_.push_back(fmt::format("{}: twice", source.name));
    }
    for (const auto& [name, target] : targets) match(name, target);
    for (const auto& [name, source] : sources_) {
      problems_.push_back(fmt::format("{}: unexpected, {}", name, shape_text(source->shape)));
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
      source != nullptr ? to.copy_(source->load().view_as(target)) : to.zero_();
    }
  }

  /// The tensors that belong to a model's names, in its order; a missing counter is 0.
  std::vector<LazyTensor> ordered() const {
    std::vector<LazyTensor> tensors;
    for (const auto& [target, source] : pairs_) {
      const auto shape = target.sizes().vec();
      const auto make = [source, shape] {
        return source != nullptr ? source->load().reshape(shape) : at::zeros(shape, at::kLong);
      };
      tensors.push_back({names_.at(tensors.size()), source != nullptr ? source->dtype : at::kLong, shape, make});
    }
    return tensors;
  }

  const std::vector<std::string>& kept() const { return kept_; }

 private:
  void match(const std::string& name, const torch::Tensor& target) {
    const auto found = sources_.find(name);
    if (found == sources_.end()) {
      if (may_be_missing_ && may_be_missing_(name)) return kept_.push_back(name);
      if (ends_with_counter(name)) return add(name, target, nullptr);
      problems_.push_back(fmt::format("{}: missing, expected {}", name, shape_text(target.sizes())));
      return;
    }
    const auto* source = found->second;
    sources_.erase(found);
    const bool fits = target.sizes() == source->shape || (is_logit_scalar(name) && source->shape == kOneValue);
    if (!fits) {
      problems_.push_back(
          fmt::format("{}: expected {}, found {}", name, shape_text(target.sizes()), shape_text(source->shape)));
    }
    add(name, target, source);
  }

  void add(const std::string& name, const torch::Tensor& target, const LazyTensor* source) {
    names_.push_back(name);
    pairs_.emplace_back(target, source);
  }

  inline static const std::vector<int64_t> kOneValue{1};

  const std::function<bool(const std::string&)>& may_be_missing_;
  std::map<std::string, const LazyTensor*> sources_;
  std::vector<std::pair<torch::Tensor, const LazyTensor*>> pairs_;
  std::vector<std::string> names_;  ///< of pairs_
  std::vector<std::string> kept_;
  std::vector<std::string> problems_;
};

}  // namespace

ClipModelImpl::ClipModelImpl(const ModelConfig& config, torch::Device device) : config_(config) {
  validate(config);
  visual = register_module("visual", make_image_tower(config, device));
  const auto activation = activation_of(config.quick_gelu, config.text_cfg.gelu_tanh);
  text = register_module("text", TextTransformer(config.text_cfg, config.embed_dim, activation, device));
  logit_scale = register_parameter("logit_scale", at::empty({}, device));
  if (config.init_logit_bias) logit_bias = register_parameter("logit_bias", at::empty({}, device));
  visual->checkpoint_activations(config.checkpoint_activations);
  text->checkpoint_activations(config.checkpoint_activations);
}

void ClipModelImpl::set_batch_norm_group(const distributed::ProcessGroup& group) {
  for (const auto& module : modules()) {
    if (auto* batch_norm = module->as<BatchNorm2dImpl>()) batch_norm->set_group(group);
  }
}

void ClipModelImpl::reset_parameters(at::Generator generator) {
  visual->reset_parameters(generator);
  text->reset_parameters(generator);
  const at::NoGradGuard no_grad;
  logit_scale.fill_(config_.init_logit_scale);
  if (logit_bias.defined()) logit_bias.fill_(*config_.init_logit_bias);
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
  return {l2_normalize(encode_image(images)), l2_normalize(encode_text(tokens)), logit_scale.exp(), logit_bias};
}

NamedTensors ClipModelImpl::state() const {
  NamedTensors tensors;
  if (!config_.custom_text) append_own(*text, "", tensors);
  append_own(*this, "", tensors);
  NamedTensors visual_tensors;
  append_all(*visual, "", visual_tensors);
  for (auto& [name, tensor] : visual_tensors) tensors.emplace_back("visual." + visual->checkpoint_name(name), tensor);
  const std::string prefix = config_.custom_text ? "text." : "";
  if (config_.custom_text) append_own(*text, prefix, tensors);
  for (const auto& child : text_children()) append_all(*child.second, prefix + child.first + ".", tensors);
  return tensors;
}

std::vector<std::pair<std::string, std::shared_ptr<torch::nn::Module>>> ClipModelImpl::text_children() const {
  auto children = text->named_children().pairs();
  if (config_.custom_text) std::swap(children.at(0), children.at(1));
  return children;
}

NamedTensors ClipModelImpl::named_trainable() const {
  auto tensors = state();
  std::erase_if(tensors, [](const auto& item) { return !item.second.requires_grad(); });
  return tensors;
}

std::vector<std::string> ClipModelImpl::load_state(const std::vector<LazyTensor>& tensors,
                                                   const std::function<bool(const std::string&)>& may_be_missing) {
  const StateMatcher matcher(state(), tensors, may_be_missing);
  matcher.throw_if_any_problem();
  matcher.copy();
  return matcher.kept();
}

void ClipModelImpl::load_state(const NamedTensors& tensors) {
  load_state(lazy(tensors));
}

void ClipModelImpl::clamp_logit_scale() {
  const at::NoGradGuard no_grad;
  logit_scale.clamp_(0, std::log(kMaxScale));
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
