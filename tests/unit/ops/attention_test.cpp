#include "contrastive/ops/attention.h"

#include <cmath>
#include <limits>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "tests/support/errors.h"
#include "tests/support/tensors.h"

namespace contrastive {
namespace {

using test::random_normal;
using test::tensors_near;

constexpr int64_t kHeads = 3, kHeadWidth = 8, kWidth = kHeads * kHeadWidth;

struct Case {
  const char* name;
  int64_t tokens;
  bool causal, hides_keys;
};

class AttentionOpTest : public testing::TestWithParam<Case> {
 public:
  ops::AttentionShape shape() const {
    return {.batch = 2, .tokens = GetParam().tokens, .heads = kHeads, .causal = GetParam().causal};
  }

  /// The last token of the first sample, and all but the first of the second.
  torch::Tensor hidden() const {
    if (!GetParam().hides_keys) return {};
    auto mask = at::zeros({2, GetParam().tokens}, at::kBool);
    mask[0][-1] = true;
    mask[1].narrow(0, 1, GetParam().tokens - 1).fill_(true);
    return mask;
  }

  /// By the definition. Shapes: qkv [B T, 3 D] to [B T, D].
  torch::Tensor expected(const torch::Tensor& qkv) const {
    const auto tokens = GetParam().tokens;
    const auto parts = qkv.view({2, tokens, 3, kHeads, kHeadWidth}).permute({2, 0, 3, 1, 4}).unbind(0);
    auto scores = at::matmul(parts[0], parts[1].transpose(2, 3)) / std::sqrt(static_cast<double>(kHeadWidth));
    const double never = -std::numeric_limits<double>::infinity();
    if (GetParam().causal) scores = scores + at::full({tokens, tokens}, never, scores.options()).triu(1);
    if (GetParam().hides_keys) scores = scores.masked_fill(hidden().view({2, 1, 1, tokens}), never);
    return at::matmul(scores.softmax(-1), parts[2]).transpose(1, 2).reshape({2 * tokens, kWidth});
  }
};

INSTANTIATE_TEST_SUITE_P(Cases, AttentionOpTest,
                         testing::Values(Case{"short_rows", 7, false, false}, Case{"short_causal", 22, true, false},
                                         Case{"short_hidden", 9, false, true}, Case{"one_token", 1, true, false},
                                         Case{"long_rows", 131, false, false}, Case{"long_causal", 140, true, false},
                                         Case{"long_hidden", 130, false, true}),
                         [](const auto& each) { return each.param.name; });

TEST_P(AttentionOpTest, ValuesAndGradientsEqualTheDefinitionInDoublePrecision) {
  const auto rows = 2 * GetParam().tokens;
  const auto qkv = random_normal({rows, 3 * kWidth}, 1, at::kDouble).requires_grad_();
  const auto bias = random_normal({3 * kWidth}, 2, at::kDouble).requires_grad_();
  const auto gradient = random_normal({rows, kWidth}, 3, at::kDouble);
  const auto reference = expected(qkv + bias);
  reference.backward(gradient);
  const auto result = ops::attention(qkv.detach(), bias.detach(), shape(), hidden());
  EXPECT_TRUE(tensors_near("values", result.values, reference.detach(), {1e-12, 0}));
  const auto actual = ops::attention_backward(gradient, shape(), result.state, hidden());
  EXPECT_TRUE(tensors_near("dqkv", actual.qkv, qkv.grad(), {1e-11, 0}));
  EXPECT_TRUE(tensors_near("dbias", actual.bias, bias.grad(), {1e-11, 1e-11}));
}

TEST_P(AttentionOpTest, SingleAndHalfPrecisionAreNearDouble) {
  const auto rows = 2 * GetParam().tokens;
  const auto qkv = random_normal({rows, 3 * kWidth}, 1, at::kBFloat16);
  const auto gradient = random_normal({rows, kWidth}, 3, at::kBFloat16);
  const auto run = [&](at::ScalarType dtype) {
    const auto result = ops::attention(qkv.to(dtype), {}, shape(), hidden());
    return std::pair{result.values, ops::attention_backward(gradient.to(dtype), shape(), result.state, hidden()).qkv};
  };
  const auto [values, gradients] = run(at::kDouble);
  const auto [values_fp32, gradients_fp32] = run(at::kFloat);
  EXPECT_TRUE(tensors_near("values", values_fp32.to(at::kDouble), values, {2e-6, 0}));
  EXPECT_TRUE(tensors_near("dqkv", gradients_fp32.to(at::kDouble), gradients, {5e-6, 0}));
  const auto [values_bf16, gradients_bf16] = run(at::kBFloat16);
  EXPECT_TRUE(tensors_near("values", values_bf16.to(at::kDouble), values, {0, 0.02}));
  EXPECT_TRUE(tensors_near("dqkv", gradients_bf16.to(at::kDouble), gradients, {0, 0.03}));
}

TEST(AttentionOpErrorsTest, SayWhatDoesNotFit) {
  const auto text = test::message_of<c10::Error>([] {
    ops::attention(at::zeros({6, 3 * kWidth}), {}, {.batch = 2, .tokens = 4, .heads = kHeads});
  });
  EXPECT_EQ(text.find("[attention] [6, 72] can't be 2 samples of 4 tokens with 3 x 3 heads"), 0U) << text;
  EXPECT_THROW(ops::attention(at::zeros({8, 3 * kWidth}), {},
                              {.batch = 2, .tokens = 4, .heads = kHeads, .causal = true}, at::zeros({2, 4}, at::kBool)),
               c10::Error);
}

}  // namespace
}  // namespace contrastive
