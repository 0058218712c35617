#include "contrastive/models/precision.h"

#include <stdexcept>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/autocast_mode.h>
#include <gtest/gtest.h>

#include "contrastive/models/transformer.h"
#include "contrastive/ops/matrix.h"

namespace contrastive::models {
namespace {

bool enabled() {
  return at::autocast::is_autocast_enabled(at::kCPU);
}

torch::ScalarType product_dtype() {
  return at::ones({2, 2}).mm(at::ones({2, 2})).scalar_type();
}

TEST(AutocastGuardTest, SwitchesMatrixProductsToBf16AndBack) {
  {
    const AutocastGuard guard(at::kCPU, true);
    EXPECT_EQ(product_dtype(), at::kBFloat16);
    EXPECT_EQ(compute_dtype(at::ones({1})), at::kBFloat16);
  }
  EXPECT_EQ(product_dtype(), at::kFloat);
  EXPECT_EQ(compute_dtype(at::ones({1})), at::kFloat);
}

TEST(AutocastGuardTest, GuardsNestAndAnInnerOneCanSwitchItOff) {
  const AutocastGuard outer(at::kCPU, true);
  {
    const AutocastGuard inner(at::kCPU, false);
    EXPECT_EQ(product_dtype(), at::kFloat);
  }
  EXPECT_EQ(product_dtype(), at::kBFloat16);
}

TEST(AutocastGuardTest, RestoresDtypeAndStateAfterAnException) {
  const auto dtype = at::autocast::get_autocast_dtype(at::kCPU);
  at::autocast::set_autocast_dtype(at::kCPU, at::kHalf);
  EXPECT_THROW(
      {
        const AutocastGuard guard(at::kCPU, true);
        throw std::runtime_error("stop");
      },
      std::runtime_error);
  EXPECT_FALSE(enabled());
  EXPECT_EQ(at::autocast::get_autocast_dtype(at::kCPU), at::kHalf);
  at::autocast::set_autocast_dtype(at::kCPU, dtype);
}

TEST(AutocastGuardTest, TheOutermostExitDropsCachedWeights) {
  auto weight = at::ones({2, 2}).requires_grad_();
  const auto product = [&] {
    const AutocastGuard guard(at::kCPU, true);
    return at::ones({2, 2}).mm(weight).sum().item<float>();
  };
  EXPECT_EQ(product(), 8.0F);
  {
    const at::NoGradGuard no_grad;
    weight.mul_(2);
  }
  EXPECT_EQ(product(), 16.0F);
}

TEST(ComputeCopyTest, WithoutAPromiseEveryCallSeesTheParameterAsItIs) {
  ComputeCopy copy;
  auto parameter = at::ones({3});
  EXPECT_TRUE(copy.of(parameter, at::kFloat).is_alias_of(parameter));
  EXPECT_EQ(copy.of(parameter, at::kBFloat16).sum().item<float>(), 3.0F);
  parameter.mutable_data_ptr<float>()[0] = 5;  // counted by nobody
  EXPECT_EQ(copy.of(parameter, at::kBFloat16).sum().item<float>(), 7.0F);
}

TEST(ComputeCopyTest, AKeptCopyFollowsEveryChangeThatTensorsCount) {
  ComputeCopy copy;
  copy.keep();
  auto parameter = at::ones({3}).requires_grad_();
  const at::NoGradGuard no_grad;
  const auto first = copy.of(parameter, at::kBFloat16);
  EXPECT_TRUE(copy.of(parameter, at::kBFloat16).is_same(first));
  parameter.mul_(2);
  EXPECT_EQ(copy.of(parameter, at::kBFloat16).sum().item<float>(), 6.0F);
  EXPECT_EQ(first.sum().item<float>(), 3.0F) << "a graph may still hold it";
  at::_foreach_add_({parameter}, 1);
  EXPECT_EQ(copy.of(parameter, at::kBFloat16).sum().item<float>(), 9.0F);
  parameter.set_data(at::zeros({3}));
  EXPECT_EQ(copy.of(parameter, at::kBFloat16).sum().item<float>(), 0.0F);
}

TEST(ComputeCopyTest, AnUpdateIsWrittenIntoACopyThatNobodyElseHolds) {
  ComputeCopy copy;
  copy.keep();
  const auto parameter = at::ones({3});
  EXPECT_FALSE(copy.begin_update(parameter).defined()) << "no pass has needed one yet";
  auto held = copy.of(parameter, at::kBFloat16);
  EXPECT_FALSE(copy.begin_update(parameter).defined()) << "the pass still holds it";
  held.reset();
  parameter.fill_(4);
  copy.begin_update(parameter).fill_(4);
  copy.confirm_update(parameter);
  EXPECT_EQ(copy.of(parameter, at::kBFloat16).sum().item<float>(), 12.0F);
}

/// Of a linear layer applied to ones.
float sum_of_product(ComputeCopy& copy, const torch::Tensor& parameter, torch::ScalarType dtype) {
  return ops::linear_forward(at::ones({1, parameter.size(1)}, dtype), copy.of(parameter, dtype)).sum().item<float>();
}

TEST(ComputeCopyTest, APackedCopyFollowsChangesAndServesPassesWithoutGradientOnly) {
  if (!ops::can_pack(at::kFloat)) GTEST_SKIP() << "no oneDNN here";
  ComputeCopy copy;
  auto parameter = at::eye(8).requires_grad_();
  copy.pack();
  {
    const at::NoGradGuard no_grad;
    const auto first = copy.of(parameter, at::kFloat);
    EXPECT_TRUE(first.is_mkldnn());
    EXPECT_TRUE(copy.of(parameter, at::kFloat).is_same(first));
    EXPECT_FALSE(copy.begin_update(parameter).defined());
    parameter.mul_(2);
    EXPECT_EQ(sum_of_product(copy, parameter, at::kFloat), 16.0F);
  }
  EXPECT_TRUE(copy.of(parameter, at::kFloat).is_alias_of(parameter));
  EXPECT_FALSE(copy.of(parameter, at::kBFloat16).is_mkldnn());
  copy.unpack();
  const at::NoGradGuard no_grad;
  EXPECT_TRUE(copy.of(parameter, at::kFloat).is_alias_of(parameter));
}

TEST(PackedWeightsTest, ChangeAPassByRoundingOnlyAndEndWithTheLastOfThem) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(7);
  Transformer model(TransformerOptions{.width = 128, .layers = 2, .heads = 2}, torch::Device(at::kCPU));
  model->reset_parameters(generator);
  const auto x = at::randn({3, 5, 128}, generator);
  const at::NoGradGuard no_grad;
  for (const bool bf16 : {false, true}) {
    const AutocastGuard autocast(at::kCPU, bf16);
    const auto input = bf16 ? x.to(at::kBFloat16) : x;
    const auto plain = model->forward(input).to(at::kFloat);
    const PackedWeights outer(*model);
    { const PackedWeights inner(*model); }
    const auto packed = model->forward(input).to(at::kFloat);
    EXPECT_LE((plain - packed).abs().max().item<float>(), bf16 ? 0.06F : 1e-5F);
    const auto& layer = model->blocks().front()->mlp->c_fc;
    EXPECT_EQ(layer->weight_as(input.scalar_type()).is_mkldnn(), ops::can_pack(input.scalar_type()));
  }
  EXPECT_FALSE(model->blocks().front()->mlp->c_fc->weight_as(at::kFloat).is_mkldnn());
}

}  // namespace
}  // namespace contrastive::models
