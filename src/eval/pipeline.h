#pragma once

#include <cstdint>
#include <future>
#include <vector>

#include <ATen/ATen.h>

namespace contrastive::eval::detail {

/// Calls use(make(i)) for i in [0, count) in order; make(i + 1) runs on another thread meanwhile.
template <typename Make, typename Use>
void pipeline(int64_t count, const Make& make, const Use& use) {
  if (count == 0) return;
  auto next = std::async(std::launch::deferred, make, int64_t{0});
  for (int64_t i = 0; i < count; ++i) {
    const auto current = next.get();
    if (i + 1 < count) next = std::async(std::launch::async, make, i + 1);
    use(current);
  }
}

/// The same for batches of images: one after the other where the model is on the CPU, as a loading thread beside the
/// computing ones costs them more than the loading takes.
template <typename Load, typename Encode>
void run_batches(int64_t count, torch::Device device, const Load& load, const Encode& encode) {
  if (!device.is_cpu()) return pipeline(count, load, encode);
  for (int64_t i = 0; i < count; ++i) encode(load(i));
}

/// Images that a CPU encodes at a time: the activations of more would leave its last cache.
inline constexpr int64_t kImagesOnCpu = 32;

/// What `encode` makes of images, which a CPU gets a few at a time. Shapes: pixels [B, ...] to [B, ...].
template <typename Encode>
torch::Tensor encode_in_parts(const torch::Tensor& pixels, torch::Device device, const Encode& encode) {
  if (!device.is_cpu() || pixels.size(0) <= kImagesOnCpu) return encode(pixels);
  std::vector<torch::Tensor> features;
  for (const auto& part : pixels.split(kImagesOnCpu)) features.push_back(encode(part));
  return at::cat(features);
}

}  // namespace contrastive::eval::detail
