#pragma once

#include <functional>
#include <vector>

#include <torch/types.h>

namespace contrastive::adapt::detail {

/// What a cache of keys says about each class: the sum over the class's keys j of exp(-beta (1 - A_ij)).
///
/// Shapes: affinities [n, M] fp32 or fp64, columns sorted by class; offsets [C + 1] int64 in CPU memory, where each
/// class's columns begin, to [n, C]. Source: Zhang et al. 2022, equation 6.
torch::Tensor cache_scores(const torch::Tensor& affinities, const torch::Tensor& offsets, double beta);

/// The same where keys count by weights, for several sets of these. Shapes: weights [G, M] to [G, n, C]. A set's scores
/// don't depend on the others.
torch::Tensor weighted_cache_scores(const torch::Tensor& affinities, const torch::Tensor& offsets, double beta,
                                    const torch::Tensor& weights);

/// cache_scores at every beta, in order: [n, C] each. Betas in equal steps cost one exponential for many of them.
void sweep_cache_scores(const torch::Tensor& affinities, const torch::Tensor& offsets, const std::vector<double>& betas,
                        const std::function<void(int64_t number, const torch::Tensor& scores)>& use);

}  // namespace contrastive::adapt::detail
