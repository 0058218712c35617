#include "contrastive/adapt/gda.h"

#include <ATen/ATen.h>

#include "adapt/gaussian_classifier.h"

namespace contrastive::adapt {

std::vector<Parameter> Gda::parameters() const {
  return {{"alpha", 1, {1e-4, 1e-3, 1e-2, 1e-1, 1, 10, 100}, ParameterRole::inner}};
}

void Gda::do_fit(const SupportFeatures& support, const TextClassifier&) {
  const auto samples = support.all_views();
  auto fit = detail::fit_gaussians({{samples.keys, samples.labels}}, support.num_classes);
  gaussian_weights_ = std::move(fit.weights);
  gaussian_bias_ = std::move(fit.bias);
}

ScoreTerms Gda::terms(const QueryFeatures& tile, const ParameterValues&) const {
  return {zero_shot_logits(tile.features), {}, at::addmm(gaussian_bias_, tile.features, gaussian_weights_.t())};
}

std::vector<std::pair<std::string, torch::Tensor*>> Gda::fitted() {
  return {{"gaussian_weights", &gaussian_weights_}, {"gaussian_bias", &gaussian_bias_}};
}

void Gda::check_fitted() const {
  require_shape("gaussian_weights", gaussian_weights_, {num_classes(), embed_dim()});
  require_shape("gaussian_bias", gaussian_bias_, {num_classes()});
}

}  // namespace contrastive::adapt
