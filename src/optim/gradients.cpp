#include "contrastive/optim/gradients.h"

#include <vector>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>
#include <fmt/format.h>

namespace contrastive::optim {
namespace {

constexpr double kNormEpsilon = 1e-6;

std::vector<torch::Tensor> gradients_of(const NamedTensors& parameters) {
  std::vector<torch::Tensor> gradients;
  for (const auto& [name, parameter] : parameters) {
    if (parameter.grad().defined()) gradients.push_back(parameter.grad());
  }
  return gradients;
}

}  // namespace

torch::Tensor global_norm(const NamedTensors& parameters) {
  const at::NoGradGuard no_grad;
  const auto gradients = gradients_of(parameters);
  if (gradients.empty()) {
    const auto options = parameters.empty() ? at::TensorOptions(at::kFloat) : parameters.front().second.options();
    return at::zeros({}, options.dtype(at::promote_types(c10::typeMetaToScalarType(options.dtype()), at::kFloat)));
  }
  const auto norms = at::stack(at::_foreach_norm(gradients, 2));
  return at::linalg_vector_norm(norms.to(at::promote_types(norms.scalar_type(), at::kFloat)), 2);
}

torch::Tensor clip_divisor(const torch::Tensor& norm, double max_norm) {
  TORCH_CHECK(max_norm > 0, "[clip_divisor] max_norm must be above 0, but is ", max_norm);
  return ((norm + kNormEpsilon) / max_norm).clamp_min(1.0);
}

std::string first_non_finite(const NamedTensors& parameters) {
  for (const auto& [name, parameter] : parameters) {
    const auto& gradient = parameter.grad();
    if (!gradient.defined() || gradient.isfinite().all().item<bool>()) continue;
    return fmt::format("the gradient of {} has {} NaN and {} infinite of {} values", name,
                       gradient.isnan().sum().item<int64_t>(), gradient.isinf().sum().item<int64_t>(),
                       gradient.numel());
  }
  return "";
}

}  // namespace contrastive::optim
