// Stands in for tile_kernels_cuda.cpp where the library is built without CUDA.
#include <c10/util/Exception.h>

#include "loss/tile_kernels.h"

namespace contrastive::loss::detail::cuda {
namespace {

[[noreturn]] void refuse() {
  TORCH_CHECK(false, "[loss] the features are on a GPU, but this build of the library has no CUDA kernels");
}

}  // namespace

void add_softmax_statistics(const Tile&, const torch::Tensor&, const torch::Tensor&, const RowStatistics&,
                            const ColumnStatistics&) {
  refuse();
}

void products_to_weights(const Tile&, const torch::Tensor&, const torch::Tensor&, const SoftmaxShares&,
                         const SoftmaxShares&, const torch::Tensor&) {
  refuse();
}

void products_to_slopes(const Tile&, const torch::Tensor&, const torch::Tensor&, const SigmoidStatistics&) {
  refuse();
}

}  // namespace contrastive::loss::detail::cuda
