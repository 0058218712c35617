#include "contrastive/models/transformer.h"

#include <cmath>
#include <limits>
#include <string>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "tests/support/errors.h"
#include "tests/support/tensors.h"

namespace contrastive::models {
namespace {

constexpr test::Tolerance kDouble{1e-12, 1e-12};

TransformerOptions small(bool causal) {
  return {.width = 12, .layers = 2, .heads = 3, .mlp_ratio = 2.0, .activation = Activation::gelu, .causal = causal};
}

template <typename Module>
void randomize(Module& module, uint64_t seed) {
  const at::NoGradGuard no_grad;
  for (auto& parameter : module->parameters()) {
    parameter.copy_(test::random_normal(parameter.sizes(), seed++, at::kDouble) * 0.3);
  }
}

Attention attention(bool causal) {
  Attention module(small(causal), at::kCPU);
  module->to(at::kDouble);
  randomize(module, 100);
  return module;
}

Transformer transformer(bool causal) {
  Transformer module(small(causal), at::kCPU);
  module->to(at::kDouble);
  randomize(module, 200);
  return module;
}

/// The textbook formula with a dense mask, one head at a time.
torch::Tensor reference_attention(const Attention& module, const torch::Tensor& x, int64_t heads, bool causal) {
  const auto tokens = x.size(1), width = x.size(2), head_width = width / heads;
  const auto qkv = (x.matmul(module->in_proj_weight.t()) + module->in_proj_bias).split(width, -1);
  std::vector<torch::Tensor> outputs;
  for (int64_t head = 0; head < heads; ++head) {
    const auto part = [&](int i) { return qkv[i].narrow(-1, head * head_width, head_width); };
    auto scores = part(0).matmul(part(1).transpose(1, 2)) / std::sqrt(static_cast<double>(head_width));
    if (causal) {
      const auto hidden = at::ones({tokens, tokens}, at::kBool).triu(1);
      scores = scores.masked_fill(hidden, -std::numeric_limits<double>::infinity());
    }
    outputs.push_back(scores.softmax(-1).matmul(part(2)));
  }
  return at::cat(outputs, -1).matmul(module->out_proj->weight.t()) + module->out_proj->bias;
}

class AttentionTest : public ::testing::TestWithParam<std::tuple<int64_t, bool>> {};

TEST_P(AttentionTest, OutputAndGradientsEqualTheTextbookFormula) {
  const auto [tokens, causal] = GetParam();
  const auto module = attention(causal);
  const auto run = [&](const auto& compute) {
    auto x = test::random_normal({2, tokens, 12}, 1, at::kDouble).requires_grad_();
    const auto y = compute(x);
    auto inputs = module->parameters();
    inputs.push_back(x);
    auto results = torch::autograd::grad({(y * test::random_normal(y.sizes(), 2, at::kDouble)).sum()}, inputs);
    results.push_back(y);
    return results;
  };
  const auto actual = run([&](const torch::Tensor& x) { return module->forward(x); });
  const auto expected = run([&, causal = causal](const auto& x) { return reference_attention(module, x, 3, causal); });
  for (size_t i = 0; i < actual.size(); ++i) {
    EXPECT_TRUE(test::tensors_near("result " + std::to_string(i), actual[i], expected[i], {1e-11, 1e-11}));
  }
}

INSTANTIATE_TEST_SUITE_P(RowLengths, AttentionTest,
                         ::testing::Combine(::testing::Values<int64_t>(1, 7, 128, 129, 150), ::testing::Bool()));

TEST(TransformerTest, PooledRowsEqualTheRowsOfTheWholeOutput) {
  for (const bool causal : {false, true}) {
    const auto module = transformer(causal);
    const auto x = test::random_normal({3, 6, 12}, 3, at::kDouble);
    const auto positions = test::indices({5, 0, 2});
    const auto all = module->forward(x);
    const auto pooled = module->forward_pooled(x, positions);
    for (int64_t i = 0; i < 3; ++i) {
      EXPECT_TRUE(test::tensors_near("row", pooled[i], all[i][positions[i].item<int64_t>()], kDouble)) << causal;
    }
  }
}

TEST(TransformerTest, WithoutPositionsTheFirstRowIsPooled) {
  const auto module = transformer(false);
  const auto x = test::random_normal({3, 6, 12}, 4, at::kDouble);
  EXPECT_TRUE(test::tensors_near("row 0", module->forward_pooled(x, {}), module->forward(x).select(1, 0), kDouble));
}

TEST(TransformerTest, PoolingGivesEveryParameterTheSameGradient) {
  const auto module = transformer(true);
  const auto x = test::random_normal({2, 5, 12}, 5, at::kDouble);
  const auto positions = test::indices({4, 1});
  const auto parameters = module->parameters();
  const auto gradients = [&](const torch::Tensor& rows) {
    return torch::autograd::grad({(rows * test::random_normal({2, 12}, 6, at::kDouble)).sum()}, parameters);
  };
  const auto all = module->forward(x);
  const auto expected = gradients(at::stack({all[0][4], all[1][1]}));
  const auto actual = gradients(module->forward_pooled(x, positions));
  for (size_t i = 0; i < actual.size(); ++i) {
    EXPECT_TRUE(test::tensors_near("gradient " + std::to_string(i), actual[i], expected[i], {1e-11, 1e-11}));
  }
}

TEST(QuickGeluTest, ValueAndGradientEqualTheFormula) {
  auto x = test::random_normal({50}, 7, at::kDouble).mul_(3).requires_grad_();
  const auto weights = test::random_normal({50}, 8, at::kDouble);
  const auto y = quick_gelu(x), expected = x * (x * 1.702).sigmoid();
  EXPECT_TRUE(test::tensors_near("value", y, expected, kDouble));
  EXPECT_TRUE(test::tensors_near("gradient", torch::autograd::grad({(y * weights).sum()}, {x})[0],
                                 torch::autograd::grad({(expected * weights).sum()}, {x})[0], kDouble));
}

TEST(TransformerTest, GradientsOfGradientsAreRefused) {
  auto module = transformer(false);
  const auto x = test::random_normal({2, 3, small(false).width}, 1, at::kDouble).requires_grad_();
  const auto text = test::message_of<c10::Error>([&] {
    torch::autograd::grad({module->forward(x).sum()}, {x}, {}, /*retain_graph=*/true, /*create_graph=*/true);
  });
  EXPECT_NE(text.find("[transformer block] gradients of gradients (create_graph) are not implemented"),
            std::string::npos)
      << text;
}

TEST(TransformerTest, InitialisationFollowsTorchsDefaults) {
  Transformer module(TransformerOptions{.width = 128, .layers = 1, .heads = 2}, at::kCPU);
  auto generator = at::detail::createCPUGenerator(9);
  module->reset_parameters(generator);
  const auto& block = module->blocks().front();
  const auto expect_uniform = [](const torch::Tensor& values, double bound) {
    EXPECT_LE(values.abs().max().item<double>(), bound);
    EXPECT_NEAR(values.std().item<double>(), bound / std::sqrt(3.0), 0.03 * bound);
  };
  expect_uniform(block->attn->in_proj_weight, std::sqrt(6.0 / (4 * 128)));
  expect_uniform(block->attn->out_proj->weight, 1 / std::sqrt(128.0));
  expect_uniform(block->mlp->c_fc->weight, 1 / std::sqrt(128.0));
  expect_uniform(block->mlp->c_proj->weight, 1 / std::sqrt(512.0));
  EXPECT_EQ(block->attn->in_proj_bias.count_nonzero().item<int64_t>(), 0);
  EXPECT_EQ(block->attn->out_proj->bias.count_nonzero().item<int64_t>(), 0);
  EXPECT_GT(block->mlp->c_fc->bias.count_nonzero().item<int64_t>(), 0);
  EXPECT_TRUE(block->ln_1->weight.eq(1).all().item<bool>());
}

}  // namespace
}  // namespace contrastive::models
