#include "contrastive/adapt/adapter.h"

#include <algorithm>
#include <utility>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "contrastive/core/error.h"

namespace contrastive::adapt {
namespace {

constexpr const char* kWeights = "weights";
constexpr const char* kScale = "scale";

bool is_computable(const torch::Tensor& tensor) {
  return tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kDouble;
}

/// The tensor of this name. Throws: CheckpointError unless it is there.
const torch::Tensor& find(const NamedTensors& tensors, const std::string& name, const std::string& adapter) {
  const auto found =
      std::find_if(tensors.begin(), tensors.end(), [&name](const auto& entry) { return entry.first == name; });
  if (found == tensors.end())
    throw CheckpointError(fmt::format("[{}] the saved state has no tensor {}", adapter, name));
  return found->second;
}

torch::Tensor weighted_sum(const ScoreTerms& terms, double outer, double inner) {
  auto logits = terms.base;
  if (terms.outer.defined()) logits = logits + terms.outer * outer;
  if (terms.inner.defined()) logits = logits + terms.inner * inner;
  return logits;
}

}  // namespace

QueryFeatures QueryFeatures::rows(int64_t begin, int64_t end) const {
  return {features.slice(0, begin, end), tokens.defined() ? tokens.slice(0, begin, end) : tokens};
}

void Adapter::fit(const SupportFeatures& support, const TextClassifier& classifier) {
  const torch::NoGradGuard no_grad;
  const auto& weights = classifier.weights;
  TORCH_CHECK(weights.defined() && weights.dim() == 2 && is_computable(weights), "[", name(),
              "] the text classifier's weights must be [C, D] fp32 or fp64");
  if (needs_support()) {
    support.check();
    TORCH_CHECK(support.num_classes == weights.size(0) && support.keys.size(1) == weights.size(1) &&
                    support.keys.scalar_type() == weights.scalar_type() && support.keys.device() == weights.device(),
                "[", name(), "] support set and text classifier must have the same classes, width, dtype and device: ",
                support.num_classes, " classes of keys ", support.keys.toString(), " ", support.keys.sizes(),
                ", and weights ", weights.toString(), " ", weights.sizes());
  }
  weights_ = weights;
  scale_ = classifier.scale;
  do_fit(support, classifier);
}

void Adapter::observe(const QueryFeatures&, const distributed::ProcessGroup&) {}

void Adapter::check(const QueryFeatures& queries) const {
  TORCH_CHECK(weights_.defined(), "[", name(), "] fit() must be called before images are scored");
  const auto& [features, tokens] = queries;
  TORCH_CHECK(features.dim() == 2 && features.size(1) == embed_dim() &&
                  features.scalar_type() == weights_.scalar_type() && features.device() == weights_.device(),
              "[", name(), "] features must be ", weights_.toString(), " [N, ", embed_dim(), "], but are ",
              features.toString(), " ", features.sizes());
  if (needs_tokens()) {
    TORCH_CHECK(tokens.defined() && tokens.dim() == 3 && tokens.size(0) == features.size(0) &&
                    tokens.size(2) == embed_dim() && tokens.scalar_type() == features.scalar_type(),
                "[", name(), "] needs the images' spatial features, [", features.size(0), ", T, ", embed_dim(), "]");
  }
  const auto finite = features.isfinite().all(1);
  if (finite.all().item<bool>()) return;
  throw DataError(fmt::format("[{}] features must be finite, but row {} of {} isn't", name(),
                              finite.logical_not().nonzero()[0].item<int64_t>(), features.size(0)));
}

torch::Tensor Adapter::logits(const QueryFeatures& queries, const ParameterValues& values) const {
  const torch::NoGradGuard no_grad;
  check(queries);
  const auto own = parameters();
  TORCH_CHECK(values.size() == own.size(), "[", name(), "] has ", own.size(), " hyper-parameters, but there are ",
              values.size(), " values");
  double outer = 0;
  double inner = 0;
  for (size_t i = 0; i < own.size(); ++i) {
    if (own[i].role == ParameterRole::outer) outer = values[i];
    if (own[i].role == ParameterRole::inner) inner = values[i];
  }
  auto result = at::empty({queries.size(), num_classes()}, queries.features.options());
  for (int64_t begin = 0; begin < queries.size(); begin += tile_rows()) {
    const auto end = std::min(queries.size(), begin + tile_rows());
    result.slice(0, begin, end).copy_(weighted_sum(terms(queries.rows(begin, end), values), outer, inner));
  }
  return result;
}

torch::Tensor Adapter::logits(const torch::Tensor& features, const ParameterValues& values) const {
  return logits(QueryFeatures{features, {}}, values);
}

void Adapter::visit_terms(const QueryFeatures& queries, const TermsVisitor& visit) const {
  const torch::NoGradGuard no_grad;
  check(queries);
  for (int64_t begin = 0; begin < queries.size(); begin += tile_rows()) {
    const auto end = std::min(queries.size(), begin + tile_rows());
    sweep_terms(queries.rows(begin, end), [&](int64_t point, const ScoreTerms& terms) { visit(begin, point, terms); });
  }
}

ParameterValues Adapter::shape_values(int64_t shape_point) const {
  const auto own = parameters();
  ParameterValues values(own.size(), 0);
  for (size_t i = own.size(); i-- > 0;) {
    if (own[i].role != ParameterRole::shape) continue;
    const auto size = static_cast<int64_t>(own[i].grid.size());
    values[i] = own[i].grid[static_cast<size_t>(shape_point % size)];
    shape_point /= size;
  }
  return values;
}

void Adapter::sweep_terms(const QueryFeatures& tile,
                          const std::function<void(int64_t shape_point, const ScoreTerms&)>& visit) const {
  int64_t num_points = 1;
  for (const auto& parameter : parameters()) {
    if (parameter.role == ParameterRole::shape) num_points *= static_cast<int64_t>(parameter.grid.size());
  }
  for (int64_t point = 0; point < num_points; ++point) visit(point, terms(tile, shape_values(point)));
}

ParameterValues Adapter::fixed_values() const {
  ParameterValues values;
  for (const auto& parameter : parameters()) values.push_back(parameter.fixed);
  return values;
}

NamedTensors Adapter::state() const {
  TORCH_CHECK(weights_.defined(), "[", name(), "] fit() must be called before the state is saved");
  NamedTensors tensors{{kWeights, weights_}, {kScale, at::full({1}, scale_, at::kDouble)}};
  // fitted() hands out pointers for restore(); nothing is written through them here.
  for (const auto& [name, tensor] : const_cast<Adapter*>(this)->fitted()) tensors.emplace_back(name, *tensor);
  return tensors;
}

void Adapter::restore(const NamedTensors& state) {
  const auto& weights = find(state, kWeights, name());
  const auto& scale = find(state, kScale, name());
  for (const auto& [name_of, tensor] : fitted()) {
    if (find(state, name_of, name()).dim() > 0) continue;
    throw CheckpointError(fmt::format("[{}] the saved state's {} must not be a single number", name(), name_of));
  }
  if (weights.dim() != 2 || !is_computable(weights) || scale.numel() != 1 || scale.scalar_type() != at::kDouble) {
    throw CheckpointError(fmt::format("[{}] the saved state's weights must be [C, D] and scale [1]", name()));
  }
  for (const auto& [name_of, tensor] : fitted()) *tensor = find(state, name_of, name()).clone();
  weights_ = weights.clone();
  scale_ = scale.item<double>();
  check_fitted();
}

void Adapter::require_shape(const char* tensor_name, const torch::Tensor& tensor, at::IntArrayRef shape,
                            at::ScalarType dtype) const {
  const auto expected = dtype == at::ScalarType::Undefined ? weights_.scalar_type() : dtype;
  if (tensor.sizes() == shape && tensor.scalar_type() == expected) return;
  throw CheckpointError(fmt::format("[{}] the saved state's {} must be {} [{}], but is {} [{}]", name(), tensor_name,
                                    at::toString(expected), fmt::join(shape, ", "), at::toString(tensor.scalar_type()),
                                    fmt::join(tensor.sizes(), ", ")));
}

void Adapter::require_offsets(const torch::Tensor& offsets, int64_t num_keys) const {
  require_shape("offsets", offsets, {num_classes() + 1}, at::kLong);
  const bool rises = offsets.diff().ge(0).all().item<bool>();
  if (rises && offsets[0].item<int64_t>() == 0 && offsets[-1].item<int64_t>() == num_keys) return;
  throw CheckpointError(fmt::format("[{}] the saved state's offsets must rise from 0 to {}", name(), num_keys));
}

torch::Tensor Adapter::zero_shot_logits(const torch::Tensor& features) const {
  return features.matmul(weights_.t()) * scale_;
}

void ZeroShotAdapter::do_fit(const SupportFeatures&, const TextClassifier&) {}

ScoreTerms ZeroShotAdapter::terms(const QueryFeatures& tile, const ParameterValues&) const {
  return {zero_shot_logits(tile.features), {}, {}};
}

std::vector<double> half_open_grid(double first, double end, int64_t count) {
  TORCH_CHECK(count >= 1, "[half_open_grid] there must be a value, but count is ", count);
  std::vector<double> values;
  for (int64_t i = 0; i < count; ++i) {
    values.push_back(first + static_cast<double>(i) * (end - first) / static_cast<double>(count));
  }
  return values;
}

}  // namespace contrastive::adapt
