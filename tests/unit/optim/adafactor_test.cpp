#include "contrastive/optim/adafactor.h"

#include <cmath>
#include <functional>
#include <string>

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include "tests/support/tensors.h"

namespace contrastive::optim {
namespace {

constexpr double kLr = 0.01;

AdafactorOptions exact() {
  return {.bf16_momentum = false};
}

torch::Tensor leaf(at::IntArrayRef sizes, uint64_t seed, torch::ScalarType dtype = at::kDouble) {
  return test::random_normal(sizes, seed, dtype).requires_grad_();
}

void set_gradient(torch::Tensor parameter, const torch::Tensor& gradient) {
  parameter.mutable_grad() = gradient.clone();
}

std::vector<std::string> kinds_of(const NamedTensors& state) {
  std::vector<std::string> kinds;
  for (const auto& [name, tensor] : state) kinds.push_back(name.substr(0, name.find('.')));
  return kinds;
}

/// The paper's second moment of a matrix: outer product of row and column means over their common mean.
torch::Tensor factored_moment(const torch::Tensor& rows, const torch::Tensor& columns) {
  return rows.unsqueeze(1) * columns.unsqueeze(0) / rows.mean();
}

TEST(AdafactorTest, StepsInDoublePrecisionAreThoseOfThePaper) {
  constexpr double kDecay = 0.2, kMomentum = 0.9;
  const NamedTensors parameters = {{"matrix", leaf({40, 33}, 1)}, {"small", leaf({31, 40}, 2)}};
  Adafactor optimizer(parameters, exact(), {{.decay = kDecay}, {}});
  auto matrix = parameters[0].second.detach().clone(), small = parameters[1].second.detach().clone();
  auto rows = at::zeros({40}, at::kDouble), columns = at::zeros({33}, at::kDouble), squares = at::zeros_like(small);
  auto matrix_mean = at::zeros_like(matrix), small_mean = at::zeros_like(small);
  for (int step = 1; step <= 4; ++step) {
    const auto g = test::random_normal({40, 33}, 10 + static_cast<uint64_t>(step), at::kDouble);
    const auto h = test::random_normal({31, 40}, 20 + static_cast<uint64_t>(step), at::kDouble);
    set_gradient(parameters[0].second, g);
    set_gradient(parameters[1].second, h);
    optimizer.step(kLr);
    const double beta2 = 1 - std::pow(step, -0.8);
    rows = beta2 * rows + (1 - beta2) * g.pow(2).mean(1);
    columns = beta2 * columns + (1 - beta2) * g.pow(2).mean(0);
    squares = beta2 * squares + (1 - beta2) * h.pow(2);
    matrix_mean = kMomentum * matrix_mean + (1 - kMomentum) * g / factored_moment(rows, columns).sqrt();
    small_mean = kMomentum * small_mean + (1 - kMomentum) * h / squares.sqrt();
    matrix = matrix - kLr * (matrix_mean + kDecay * matrix);
    small = small - kLr * small_mean;
    EXPECT_TRUE(test::tensors_near("matrix", parameters[0].second, matrix, {1e-13, 0}));
    EXPECT_TRUE(test::tensors_near("small", parameters[1].second, small, {1e-13, 0}));
  }
}

TEST(AdafactorTest, TheFirstStepKeepsNoMomentAndTheCapLimitsLaterOnes) {
  const NamedTensors parameters = {{"w", leaf({5}, 1)}};
  auto options = exact();
  options.beta2 = 0.3;
  options.momentum.reset();
  Adafactor optimizer(parameters, options, {{}});
  auto value = parameters[0].second.detach().clone();
  auto squares = at::zeros_like(value);
  for (const double beta2 : {0.0, 0.3, 0.3}) {
    const auto gradient = test::random_normal({5}, 7, at::kDouble) * (1 + beta2);
    set_gradient(parameters[0].second, gradient);
    optimizer.step(kLr);
    squares = beta2 * squares + (1 - beta2) * gradient.pow(2);
    value = value - kLr * gradient / squares.sqrt();
    EXPECT_TRUE(test::tensors_near("w", parameters[0].second, value, {1e-12, 0}));
  }
  EXPECT_EQ(kinds_of(optimizer.state()), (std::vector<std::string>{"exp_avg_sq", "step"}));
}

TEST(AdafactorTest, ClippingLimitsTheRootMeanSquareOfEachPart) {
  const NamedTensors parameters = {{"w", leaf({6}, 1)}};
  auto options = exact();
  options.momentum.reset();
  options.clipping_threshold = 0.25;
  options.layout = [](const std::string&, at::IntArrayRef) { return AdafactorLayout{.parts = 2, .shape = {3}}; };
  Adafactor optimizer(parameters, options, {{}});
  const auto before = parameters[0].second.detach().clone();
  const auto gradient = test::random_normal({6}, 2, at::kDouble);
  set_gradient(parameters[0].second, gradient);
  optimizer.step(kLr);  // the first update is the sign: root mean square 1 in each part
  EXPECT_TRUE(test::tensors_near("w", parameters[0].second, before - kLr * 0.25 * gradient.sign(), {1e-12, 0}));
}

TEST(AdafactorTest, AZeroGradientChangesNothing) {
  const NamedTensors parameters = {{"matrix", leaf({40, 33}, 1, at::kFloat)}, {"small", leaf({5}, 2, at::kFloat)}};
  const auto matrix = parameters[0].second.detach().clone();
  Adafactor optimizer(parameters, {}, {{}, {}});
  for (int step = 0; step < 3; ++step) {
    for (const auto& [name, parameter] : parameters) set_gradient(parameter, at::zeros_like(parameter));
    optimizer.step(kLr);
  }
  EXPECT_TRUE(test::tensors_equal("matrix", parameters[0].second.detach(), matrix));
}

TEST(AdafactorTest, TheStateOfAMatrixIsARowAColumnAndABf16Momentum) {
  Adafactor optimizer({{"w", leaf({64, 48}, 1, at::kFloat)}}, {}, {{}});
  const auto state = test::by_name(optimizer.state());
  EXPECT_EQ(state.at("exp_avg.w").scalar_type(), at::kBFloat16);
  EXPECT_EQ(state.at("exp_avg.w").sizes(), at::IntArrayRef({64, 48}));
  EXPECT_EQ(state.at("exp_avg_sq_row.w").sizes(), at::IntArrayRef({1, 1, 48}));
  EXPECT_EQ(state.at("exp_avg_sq_col.w").sizes(), at::IntArrayRef({1, 64, 1}));
  EXPECT_EQ(state.size(), 4U);
}

TEST(AdafactorTest, ALayoutOfAnotherSizeIsRefused) {
  AdafactorOptions options;
  options.layout = [](const std::string&, at::IntArrayRef) { return AdafactorLayout{.parts = 2, .shape = {5}}; };
  EXPECT_THROW(Adafactor({{"w", leaf({9}, 1)}}, options, {{}}), c10::Error);
}

/// One of our parameters and big_vision's parameters of the same role.
struct Counterpart {
  std::string name;
  std::vector<int64_t> shape;
  std::vector<std::vector<int64_t>> jax_shapes;
  /// Our values in big_vision's arrays.
  std::function<std::vector<torch::Tensor>(const torch::Tensor&)> to_jax;
};

/// Of a kernel that reads D inputs: rows of several projections to [D, heads, D / heads] each.
std::vector<torch::Tensor> projections(const torch::Tensor& weight, int64_t parts, int64_t heads) {
  std::vector<torch::Tensor> result;
  for (const auto& part : weight.chunk(parts)) {
    const auto split = part.reshape({heads, part.size(0) / heads, -1});
    result.push_back(split.permute({2, 0, 1}).contiguous());
  }
  return result;
}

std::vector<Counterpart> counterparts() {
  constexpr int64_t kD = 96, kHeads = 2, kTextHeads = 32;  // 32 heads: of 3 values each, too few to factor biases
  const auto output = [](int64_t heads) {
    return [heads](const torch::Tensor& w) {
      return std::vector{w.t().reshape({heads, w.size(1) / heads, w.size(0)}).contiguous()};
    };
  };
  const auto input = [](int64_t parts, int64_t heads) {
    return [=](const torch::Tensor& w) { return projections(w, parts, heads); };
  };
  const auto dense = [](const torch::Tensor& w) { return std::vector{w.t().contiguous()}; };
  return {
      {"visual.trunk.blocks.0.attn.qkv.weight", {3 * kD, kD}, {3, {kD, kHeads, kD / kHeads}}, input(3, kHeads)},
      {"text.transformer.resblocks.0.attn.in_proj_weight",
       {3 * kD, kD},
       {3, {kD, kTextHeads, kD / kTextHeads}},
       input(3, kTextHeads)},
      {"visual.trunk.attn_pool.kv.weight", {2 * kD, kD}, {2, {kD, kHeads, kD / kHeads}}, input(2, kHeads)},
      {"visual.trunk.attn_pool.q.weight", {kD, kD}, {{kD, kHeads, kD / kHeads}}, input(1, kHeads)},
      {"visual.trunk.blocks.0.attn.proj.weight", {kD, kD}, {{kHeads, kD / kHeads, kD}}, output(kHeads)},
      {"text.transformer.resblocks.0.attn.out_proj.weight",
       {kD, kD},
       {{kTextHeads, kD / kTextHeads, kD}},
       output(kTextHeads)},
      {"visual.trunk.blocks.0.mlp.fc1.weight", {2 * kD, kD}, {{kD, 2 * kD}}, dense},
      {"visual.trunk.patch_embed.proj.weight",
       {32, 3, 32, 32},  // three axes of one length: the order decides
       {{32, 32, 3, 32}},
       [](const torch::Tensor& w) {
         return std::vector{w.permute({2, 3, 1, 0}).contiguous()};
       }},
      {"visual.trunk.blocks.0.attn.qkv.bias",
       {3 * 32 * 33},
       {3, {33, 32}},
       [](const torch::Tensor& b) {
         std::vector<torch::Tensor> parts;
         for (const auto& part : b.chunk(3)) parts.push_back(part.reshape({33, 32}).contiguous());
         return parts;
       }},
  };
}

void expect_equal_training(const Counterpart& item, int64_t heads_image, int64_t heads_text) {
  const NamedTensors ours = {{item.name, leaf(item.shape, 1)}};
  NamedTensors theirs;
  for (const auto& array : item.to_jax(ours[0].second.detach())) {
    theirs.emplace_back("array" + std::to_string(theirs.size()), array.clone().requires_grad_());
  }
  auto options = exact();
  options.clipping_threshold = 0.5;
  Adafactor reference(theirs, options, std::vector<ParameterSettings>(theirs.size()));
  options.layout = [=](const std::string& name, at::IntArrayRef shape) {
    return adafactor_layout(name, shape, heads_image, heads_text);
  };
  Adafactor optimizer(ours, options, {{}});
  for (uint64_t step = 0; step < 3; ++step) {
    const auto gradient = test::random_normal(item.shape, 10 + step, at::kDouble);
    set_gradient(ours[0].second, gradient);
    const auto parts = item.to_jax(gradient);
    for (size_t i = 0; i < theirs.size(); ++i) set_gradient(theirs[i].second, parts[i]);
    optimizer.step(kLr);
    reference.step(kLr);
  }
  const auto values = item.to_jax(ours[0].second.detach());
  ASSERT_EQ(values.size(), item.jax_shapes.size()) << item.name;
  for (size_t i = 0; i < theirs.size(); ++i) {
    EXPECT_EQ(theirs[i].second.sizes(), at::IntArrayRef(item.jax_shapes[i])) << item.name;
    EXPECT_TRUE(test::tensors_near(item.name, values[i], theirs[i].second, {1e-13, 0}));
  }
}

TEST(AdafactorLayoutTest, OurShapesTrainAsBigVisionsArrays) {
  for (const auto& item : counterparts()) {
    const bool is_bias = item.name.ends_with("bias");
    expect_equal_training(item, is_bias ? 33 : 2, 32);
  }
}

TEST(AdafactorLayoutTest, WhatIsNoAttentionKeepsItsShape) {
  for (const auto* name : {"logit_scale", "text.token_embedding.weight", "text.transformer.ln_final.weight"}) {
    const auto layout = adafactor_layout(name, {64, 32}, 2, 4);
    EXPECT_EQ(layout.parts, 1) << name;
    EXPECT_EQ(layout.shape, (std::vector<int64_t>{64, 32})) << name;
  }
  EXPECT_EQ(adafactor_layout("visual.trunk.blocks.0.attn.qkv.weight", {96, 32}, 5, 4).parts, 1);  // 5 heads don't fit
}

}  // namespace
}  // namespace contrastive::optim
