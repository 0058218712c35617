#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "contrastive/loss/contrastive_loss.h"
#include "contrastive/loss/sigmoid_loss.h"

#include "tests/support/tensors.h"

namespace contrastive::loss {
namespace {

struct LossCase {
  int64_t rows, dim;
  double scale;
  bool is_confident;  ///< texts are their images with a little noise
};

// One tile, several tiles in each direction, and sizes that no block of threads divides; with and without a shift.
const std::vector<LossCase> kCases{{1, 7, 10, false},    {65, 33, 14.3, false}, {300, 64, 100, false},
                                   {300, 64, 100, true}, {5000, 16, 30, false}, {5000, 16, 100, true}};

/// Loss, accuracy and the gradients of image, text, scale (and bias) on a device.
std::vector<torch::Tensor> evaluated(const LossCase& c, bool is_sigmoid, torch::ScalarType dtype,
                                     torch::Device device) {
  const auto unit = [](const torch::Tensor& x) { return x / x.norm(2, 1, true); };
  const auto noise = test::random_normal({c.rows, c.dim}, 2, at::kDouble);
  const auto rows = unit(test::random_normal({c.rows, c.dim}, 1, at::kDouble));
  const auto leaf = [&](const torch::Tensor& x) { return x.to(dtype).to(device).detach().requires_grad_(); };
  const auto image = leaf(rows), text = leaf(unit(c.is_confident ? rows + 0.1 * noise : noise));
  const auto scale = leaf(at::full({}, c.scale)), bias = leaf(at::full({}, -c.scale / 2));
  const auto output = is_sigmoid ? sigmoid_loss(image, text, scale, bias) : contrastive_loss(image, text, scale);
  std::vector<torch::Tensor> inputs{image, text, scale};
  if (is_sigmoid) inputs.push_back(bias);
  auto results = torch::autograd::grad({output.loss}, inputs);
  results.push_back(output.loss.detach());
  results.push_back(output.accuracy);
  for (auto& result : results) result = result.cpu();
  return results;
}

void expect_gpu_equals_cpu(bool is_sigmoid, torch::ScalarType dtype, double relative) {
  if (!at::hasCUDA()) GTEST_SKIP() << "this machine has no GPU";
  for (const auto& c : kCases) {
    const auto expected = evaluated(c, is_sigmoid, dtype, at::kCPU);
    const auto actual = evaluated(c, is_sigmoid, dtype, at::kCUDA);
    for (size_t i = 0; i < expected.size(); ++i) {
      EXPECT_TRUE(test::tensors_near(
          std::to_string(c.rows) + " rows, scale " + std::to_string(c.scale) + ", value " + std::to_string(i),
          actual[i], expected[i], {relative * 1e-1, relative}));
    }
  }
}

TEST(LossKernelsTest, ContrastiveLossOnAGpuEqualsThatOnTheCpuInDoublePrecision) {
  expect_gpu_equals_cpu(false, at::kDouble, 1e-11);
}

TEST(LossKernelsTest, SigmoidLossOnAGpuEqualsThatOnTheCpuInDoublePrecision) {
  expect_gpu_equals_cpu(true, at::kDouble, 1e-11);
}

TEST(LossKernelsTest, ContrastiveLossOnAGpuEqualsThatOnTheCpuInSinglePrecision) {
  expect_gpu_equals_cpu(false, at::kFloat, 1e-4);
}

TEST(LossKernelsTest, SigmoidLossOnAGpuEqualsThatOnTheCpuInSinglePrecision) {
  expect_gpu_equals_cpu(true, at::kFloat, 1e-4);
}

}  // namespace
}  // namespace contrastive::loss
