#include "contrastive/models/position_embeddings.h"

#include <cmath>
#include <functional>
#include <string>
#include <utility>

#include <ATen/ATen.h>
#include <c10/util/Exception.h>

namespace contrastive::models {
namespace {

constexpr int64_t kResnetReduction = 32;

int64_t side_of(int64_t count) {
  const auto side = static_cast<int64_t>(std::llround(std::sqrt(static_cast<double>(count))));
  TORCH_CHECK(count > 0 && side * side == count, "[resize_image_positions] ", count,
              " positions are not a square grid");
  return side;
}

torch::Tensor stretch(const torch::Tensor& image, int64_t grid, PositionResize mode) {
  if (mode == PositionResize::bicubic) return at::_upsample_bicubic2d_aa(image, {grid, grid}, /*align_corners=*/false);
  return at::upsample_bilinear2d(image, {grid, grid}, /*align_corners=*/true);
}

using Resize = std::function<torch::Tensor(const torch::Tensor&)>;

/// The same tensor, resized when it is loaded.
void replace(LazyTensor& tensor, size_t dim, int64_t size, const Resize& resize) {
  tensor.shape[dim] = size;
  tensor.load = [load = std::move(tensor.load), resize] { return resize(load()); };
}

/// Whether the tensor was another size along `dim`.
bool fit_image(LazyTensor& tensor, size_t dim, int64_t prefix, int64_t grid, PositionResize mode) {
  if (tensor.shape.size() != dim + 2 || tensor.shape[dim] == prefix + grid * grid) return false;
  side_of(tensor.shape[dim] - prefix);
  replace(tensor, dim, prefix + grid * grid,
          [=](const torch::Tensor& positions) { return resize_image_positions(positions, prefix, grid, mode); });
  return true;
}

bool fit_text(LazyTensor& tensor, int64_t context_length) {
  if (tensor.shape.size() != 2 || tensor.shape[0] == context_length) return false;
  replace(tensor, 0, context_length,
          [=](const torch::Tensor& positions) { return resize_text_positions(positions, context_length); });
  return true;
}

}  // namespace

torch::Tensor resize_image_positions(const torch::Tensor& positions, int64_t prefix, int64_t grid,
                                     PositionResize mode) {
  const auto rows = positions.dim() == 3 ? positions.squeeze(0) : positions;  // [prefix + P, D]
  const auto old_grid = side_of(rows.size(0) - prefix);
  const auto image = rows.slice(0, prefix).to(at::kFloat).t().reshape({1, rows.size(1), old_grid, old_grid});
  const auto stretched = stretch(image, grid, mode).flatten(2).squeeze(0).t();  // [grid * grid, D]
  const auto result = at::cat({rows.slice(0, 0, prefix), stretched.to(rows.scalar_type())});
  return positions.dim() == 3 ? result.unsqueeze(0) : result;
}

torch::Tensor resize_text_positions(const torch::Tensor& positions, int64_t context_length) {
  const auto channels = positions.to(at::kFloat).t().unsqueeze(0);  // [1, D, T]
  const auto stretched = at::upsample_linear1d(channels, {context_length}, /*align_corners=*/false);
  return stretched.squeeze(0).t().contiguous().to(positions.scalar_type());
}

std::vector<std::string> fit_positions(std::vector<LazyTensor>& tensors, const ModelConfig& config,
                                       PositionResize mode) {
  const auto& vision = config.vision_cfg;
  const auto grid = vision.image_size / (vision.is_resnet() ? kResnetReduction : vision.patch_size);
  std::vector<std::string> resized;
  for (auto& tensor : tensors) {
    bool changed = false;
    if (tensor.name == "visual.positional_embedding" || tensor.name == "visual.attnpool.positional_embedding") {
      changed = fit_image(tensor, 0, /*prefix=*/1, grid, mode);
    } else if (tensor.name == "visual.trunk.pos_embed") {
      changed = fit_image(tensor, 1, /*prefix=*/vision.class_token ? 1 : 0, grid, mode);
    } else if (tensor.name == "positional_embedding" || tensor.name == "text.positional_embedding") {
      changed = fit_text(tensor, config.text_cfg.context_length);
    }
    if (changed) resized.push_back(tensor.name);
  }
  return resized;
}

}  // namespace contrastive::models
