#include "loss/loss_inputs.h"

#include <algorithm>
#include <array>
#include <mutex>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <fmt/format.h>

namespace contrastive::loss::detail {
namespace {

/// "rank 0 has 12, rank 1 has 8"
std::string sizes_by_rank(const torch::Tensor& sizes) {
  std::string text;
  for (int64_t rank = 0; rank < sizes.numel(); ++rank) {
    text += fmt::format("{}rank {} has {}", rank == 0 ? "" : ", ", rank, sizes[rank].item<int64_t>());
  }
  return text;
}

/// "rank 0 needs text, rank 1 needs image and text"
std::string needs_by_rank(const torch::Tensor& image, const torch::Tensor& text) {
  constexpr std::array<const char*, 4> kNames{"none", "image", "text", "image and text"};
  std::string result;
  for (int64_t rank = 0; rank < image.numel(); ++rank) {
    const auto needs = image[rank].item<int64_t>() + 2 * text[rank].item<int64_t>();
    result += fmt::format("{}rank {} needs {}", rank == 0 ? "" : ", ", rank, kNames.at(static_cast<size_t>(needs)));
  }
  return result;
}

}  // namespace

NeededGradients needed_gradients(const torch::Tensor& image, const torch::Tensor& text,
                                 std::initializer_list<torch::Tensor> scalars) {
  if (!at::GradMode::is_enabled()) return {};
  const bool of_scalars =
      std::any_of(scalars.begin(), scalars.end(), [](const auto& scalar) { return scalar.requires_grad(); });
  return {image.requires_grad(), text.requires_grad(), of_scalars};
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

void check_same_on_all_ranks(const char* operation, const torch::Tensor& features, const NeededGradients& needed,
                             const distributed::ProcessGroup& group) {
  if (group.is_alone()) return;
  const std::vector<int64_t> own{features.size(0), features.size(1), needed.image, needed.text};
  if (features.is_cuda()) {
    // Ranks meet on the CPU, which on a GPU is worth it only when something changes. A rank where it alone changes then
    // waits until the group's time-out.
    static std::mutex mutex;
    static std::vector<int64_t> last_checked;
    const std::lock_guard lock(mutex);
    if (own == last_checked) return;
    last_checked = own;
  }
  const auto all = group.all_gather(at::tensor(own, at::kLong).unsqueeze(0)).t();  // [4, W]
  const auto differ = [](const torch::Tensor& of_ranks) { return (of_ranks != of_ranks[0]).any().item<bool>(); };
  TORCH_CHECK(!differ(all[0]), "[", operation, "] every rank must pass the same number of rows, but ",
              sizes_by_rank(all[0]));
  TORCH_CHECK(!differ(all[1]), "[", operation, "] every rank must pass features of the same width, but ",
              sizes_by_rank(all[1]));
  TORCH_CHECK(!differ(all[2]) && !differ(all[3]), "[", operation,
              "] every rank must need the gradients of the same features, but ", needs_by_rank(all[2], all[3]));
}

}  // namespace contrastive::loss::detail
