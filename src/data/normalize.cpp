#include "contrastive/data/normalize.h"

#include <ATen/ATen.h>

namespace contrastive::data {

torch::Tensor normalize_images(const torch::Tensor& pixels, const std::array<float, 3>& mean,
                               const std::array<float, 3>& std, torch::Device device) {
  TORCH_CHECK(pixels.dim() == 4 && pixels.size(3) == 3 && pixels.scalar_type() == at::kByte,
              "[normalize_images] pixels must be [B, H, W, 3] uint8, but are ", pixels.sizes(), " ",
              pixels.scalar_type());
  const auto options = at::TensorOptions().dtype(at::kFloat);
  const auto std_row = at::tensor(at::ArrayRef<float>(std.data(), 3), options).to(device, /*non_blocking=*/true);
  const auto mean_row = at::tensor(at::ArrayRef<float>(mean.data(), 3), options).to(device, /*non_blocking=*/true);
  auto images = pixels.to(device, /*non_blocking=*/true).to(at::kFloat);  // [B, H, W, 3]
  images.sub_(mean_row * 255).div_(std_row * 255);
  return images.permute({0, 3, 1, 2});  // [B, 3, H, W]
}

}  // namespace contrastive::data
