#include "contrastive/models/text_transformer.h"

#include <cmath>
#include <string>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include "tests/support/tensors.h"

namespace contrastive::models {
namespace {

constexpr int64_t kStart = 98, kEnd = 99;

TextConfig small() {
  return {.context_length = 12, .vocab_size = 100, .width = 32, .heads = 2, .layers = 3};
}

TextTransformer tower(const TextConfig& config) {
  TextTransformer module(config, 24, Activation::gelu, at::kCPU);
  auto generator = at::detail::createCPUGenerator(1);
  module->reset_parameters(generator);
  return module;
}

/// Rows of start, some ids, end, and zeros up to `context`. The end stands at position 1 + words.
torch::Tensor captions(const std::vector<int64_t>& words, int64_t context) {
  auto tokens = at::zeros({static_cast<int64_t>(words.size()), context}, at::kLong);
  for (int64_t row = 0; row < tokens.size(0); ++row) {
    const auto count = words[row];
    tokens[row][0] = kStart;
    for (int64_t i = 0; i < count; ++i) tokens[row][1 + i] = 1 + (7 * row + 3 * i) % 90;
    tokens[row][1 + count] = kEnd;
  }
  return tokens;
}

std::string error_of(TextTransformer& module, const torch::Tensor& tokens) {
  try {
    module->forward(tokens);
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  }
  return "";
}

TEST(TextTransformerTest, TokensAfterTheFirstEndChangeNothingBitForBit) {
  at::set_num_threads(1);
  auto module = tower(small());
  const auto tokens = captions({3, 9, 5}, 12);
  auto changed = tokens.clone();
  changed[0].slice(0, 5).fill_(42);
  changed[0][8] = kEnd;
  changed[2].slice(0, 7).fill_(kStart);
  EXPECT_TRUE(test::tensors_equal("features", module->forward(changed), module->forward(tokens)));
}

TEST(TextTransformerTest, TokensBeforeTheEndMatter) {
  auto module = tower(small());
  const auto tokens = captions({3}, 12);
  auto changed = tokens.clone();
  changed[0][2] = 42;
  EXPECT_FALSE(test::tensors_near("features", module->forward(changed), module->forward(tokens), {1e-4, 0}));
}

TEST(TextTransformerTest, CuttingTheBatchAtItsLongestCaptionGivesTheFeaturesOfTheWholeContext) {
  auto module = tower(small());
  const auto tokens = captions({3, 1, 5}, 12);
  const auto x = module->token_embedding->forward(tokens) + module->positional_embedding;
  const auto all = module->ln_final->forward(module->transformer->forward(x));
  const auto rows = at::stack({all[0][4], all[1][2], all[2][6]});
  EXPECT_TRUE(
      test::tensors_near("features", module->forward(tokens), rows.matmul(module->text_projection), {1e-6, 1e-5}));
}

TEST(TextTransformerTest, CaptionsOfManyLengthsGiveWhatEachGivesAlone) {
  auto config = small();
  config.context_length = 77;
  auto module = tower(config);
  module->to(at::kDouble);
  // Enough short and enough long ones to be computed apart, in no order.
  std::vector<int64_t> words;
  for (int64_t row = 0; row < 60; ++row) words.push_back(row % 3 == 0 ? 60 + row % 7 : 2 + row % 5);
  const auto tokens = captions(words, 77);
  const auto parameters = module->parameters();
  const auto gradients_of = [&](const torch::Tensor& features) {
    module->zero_grad();
    (features * test::random_normal(features.sizes(), 3, at::kDouble)).sum().backward();
    std::vector<torch::Tensor> gradients;
    for (const auto& parameter : parameters) gradients.push_back(parameter.grad().clone());
    return gradients;
  };
  std::vector<torch::Tensor> alone;
  for (int64_t row = 0; row < tokens.size(0); ++row) alone.push_back(module->forward(tokens.narrow(0, row, 1)));
  const auto expected = at::cat(alone), features = module->forward(tokens);
  EXPECT_TRUE(test::tensors_near("features", features.detach(), expected.detach(), {1e-12, 1e-12}));
  const auto expected_gradients = gradients_of(expected), gradients = gradients_of(features);
  for (size_t i = 0; i < gradients.size(); ++i) {
    EXPECT_TRUE(test::tensors_near("gradient", gradients[i], expected_gradients[i], {1e-11, 1e-11}));
  }
}

TEST(TextTransformerTest, RecomputedBlocksAddTheirGradientsOnceAStep) {
  auto config = small();
  config.context_length = 77;
  auto module = tower(config);
  module->train();
  module->checkpoint_activations(true);
  int64_t additions = 0;
  module->transformer->blocks().front()->ln_1->weight.register_hook([&](const torch::Tensor&) { ++additions; });
  std::vector<int64_t> words(60, 5);
  words.back() = 70;  // worth a group of its own otherwise
  module->forward(captions(words, 77)).sum().backward();
  EXPECT_EQ(additions, 1);
}

TEST(TextTransformerTest, ShorterContextsThanTheModelsAreAccepted) {
  auto module = tower(small());
  const auto tokens = captions({3, 4}, 12);
  EXPECT_TRUE(
      test::tensors_near("features", module->forward(tokens.narrow(1, 0, 7)), module->forward(tokens), {1e-6, 1e-5}));
  EXPECT_EQ(module->forward(tokens.narrow(0, 0, 0)).sizes(), at::IntArrayRef({0, 24}));
}

TEST(TextTransformerTest, PoolingAtFirstAndLastReadsThosePositions) {
  for (const bool causal : {false, true}) {
    for (const auto* pool : {"first", "last"}) {
      auto config = small();
      config.pool_type = pool;
      config.no_causal_mask = !causal;
      auto module = tower(config);
      const auto tokens = captions({3, 7}, 12);
      const auto x = module->token_embedding->forward(tokens) + module->positional_embedding;
      const auto row = module->transformer->forward(x).select(1, std::string(pool) == "first" ? 0 : 11);
      const auto expected = module->ln_final->forward(row).matmul(module->text_projection);
      EXPECT_TRUE(test::tensors_near(pool, module->forward(tokens), expected, {1e-6, 1e-5})) << causal;
    }
  }
}

TEST(TextTransformerTest, TokensThatCannotBeEncodedAreRefusedWithAReason) {
  auto module = tower(small());
  auto tokens = captions({3}, 12);
  EXPECT_NE(
      error_of(module, at::zeros({2, 13}, at::kLong)).find("1 <= T <= 12 (the context length), but are Long [2, 13]"),
      std::string::npos);
  EXPECT_NE(error_of(module, tokens.to(at::kInt)).find("must be int64"), std::string::npos);
  tokens[0][2] = 100;
  EXPECT_NE(error_of(module, tokens).find("ids must be in [0, 100) (the vocabulary), but range from 0 to 100"),
            std::string::npos);
  tokens[0][2] = -1;
  EXPECT_NE(error_of(module, tokens).find("from -1 to 99"), std::string::npos);
}

TEST(TextTransformerTest, InitialisationFollowsTheReleasedCode) {
  TextConfig config{.context_length = 77, .vocab_size = 1000, .width = 256, .heads = 4, .layers = 2};
  auto module = tower(config);
  const auto expect_std = [](const torch::Tensor& values, double std) {
    const auto count = static_cast<double>(values.numel());
    EXPECT_NEAR(values.std().item<double>(), std, 5 * std / std::sqrt(2 * count));
    EXPECT_NEAR(values.mean().item<double>(), 0, 5 * std / std::sqrt(count));
  };
  const double attn = std::pow(256.0, -0.5), residual = attn * std::pow(4.0, -0.5), fc = std::pow(512.0, -0.5);
  expect_std(module->token_embedding->weight, 0.02);
  expect_std(module->positional_embedding, 0.01);
  expect_std(module->text_projection, attn);
  for (const auto& block : module->transformer->blocks()) {
    expect_std(block->attn->in_proj_weight, attn);
    expect_std(block->attn->out_proj->weight, residual);
    expect_std(block->mlp->c_fc->weight, fc);
    expect_std(block->mlp->c_proj->weight, residual);
    EXPECT_EQ(block->attn->in_proj_bias.count_nonzero().item<int64_t>(), 0);
    EXPECT_LE(block->mlp->c_fc->bias.abs().max().item<double>(), 1.0 / 16);
  }
}

}  // namespace
}  // namespace contrastive::models
