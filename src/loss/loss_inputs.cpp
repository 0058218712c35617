#include "loss/loss_inputs.h"

#include <algorithm>

#include <ATen/ATen.h>
#include <c10/util/Exception.h>

namespace contrastive::loss::detail {
namespace {

// Logits of one tile: small enough for a CPU's cache, large enough to fill a GPU.
constexpr int64_t kTileValuesOnCpu = int64_t{1} << 22;
constexpr int64_t kTileValuesOnGpu = int64_t{1} << 26;

}  // namespace

int64_t tile_rows(const torch::Tensor& features, int64_t rows) {
  const auto values = features.is_cpu() ? kTileValuesOnCpu : kTileValuesOnGpu;
  return std::clamp<int64_t>(values / rows, 1, rows);
}

void check_features(const char* operation, const torch::Tensor& image, const torch::Tensor& text) {
  TORCH_CHECK(image.dim() == 2 && image.size(0) > 0 && image.is_floating_point(), "[", operation,
              "] image_features must be floating point [B, D] with B > 0, but are ", image.scalar_type(), " ",
              image.sizes());
  TORCH_CHECK(
      text.sizes() == image.sizes() && text.scalar_type() == image.scalar_type() && text.device() == image.device(),
      "[", operation, "] text_features must be ", image.scalar_type(), " ", image.sizes(), " on ", image.device(),
      " like image_features, but are ", text.scalar_type(), " ", text.sizes(), " on ", text.device());
}

void check_scalar(const char* operation, const char* name, const torch::Tensor& value, const torch::Tensor& image) {
  TORCH_CHECK(value.defined(), "[", operation, "] ", name, " is undefined");
  TORCH_CHECK(value.dim() == 0 && value.device() == image.device(), "[", operation, "] ", name, " must be a scalar on ",
              image.device(), ", but is ", value.sizes(), " on ", value.device());
}

}  // namespace contrastive::loss::detail
