#include "models/attention.h"

#include <cmath>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "tests/support/tensors.h"

namespace contrastive::models::detail {
namespace {

constexpr int64_t kHeads = 2;

/// The formula, query by query: softmax over the keys that are not hidden. A sample without any attends to all.
torch::Tensor reference(const torch::Tensor& qkv, const torch::Tensor& hidden) {
  const auto batch = qkv.size(0), tokens = qkv.size(1), width = qkv.size(2) / 3, head = width / kHeads;
  const auto part = [&](int64_t i) {
    return qkv.narrow(2, i * width, width).view({batch, tokens, kHeads, head}).transpose(1, 2);
  };
  const auto scores = part(0).matmul(part(1).transpose(2, 3)) / std::sqrt(static_cast<double>(head));
  const auto visible = hidden.logical_not().to(qkv.scalar_type()).view({batch, 1, 1, tokens});
  const auto weights =
      scores.exp() * at::maximum(visible, hidden.all(1).to(visible.scalar_type()).view({batch, 1, 1, 1}));
  return (weights / weights.sum(-1, true)).matmul(part(2)).transpose(1, 2).reshape({batch, tokens, width});
}

torch::Tensor some_hidden(int64_t tokens) {
  auto hidden = at::zeros({4, tokens}, at::kBool);
  hidden[0].slice(0, tokens / 2).fill_(true);
  hidden[1][1].fill_(true);
  hidden[2].fill_(true);
  return hidden;
}

// 5: matrix products of our own; 130: ATen's kernel.
TEST(PackedAttentionTest, WithHiddenKeysEqualsTheFormulaWithItsGradient) {
  for (const int64_t tokens : {5, 130}) {
    const auto qkv = test::random_normal({4, tokens, 24}, 1, at::kDouble).requires_grad_();
    const auto hidden = some_hidden(tokens), direction = test::random_normal({4, tokens, 8}, 2, at::kDouble);
    const auto expected = reference(qkv, hidden);
    (expected * direction).sum().backward();
    const auto expected_gradient = qkv.grad().clone();
    qkv.mutable_grad().zero_();
    const auto actual = packed_attention(qkv, kHeads, /*causal=*/false, hidden);
    (actual * direction).sum().backward();
    EXPECT_TRUE(test::tensors_near("attention", actual, expected, {0, 1e-12})) << tokens;
    EXPECT_TRUE(test::tensors_near("gradient", qkv.grad(), expected_gradient, {0, 1e-12})) << tokens;
  }
}

TEST(PackedAttentionTest, AMaskThatHidesNothingChangesNoBit) {
  const auto qkv = test::random_normal({4, 7, 24}, 3);
  EXPECT_TRUE(test::tensors_equal("attention", packed_attention(qkv, kHeads, false, at::zeros({4, 7}, at::kBool)),
                                  packed_attention(qkv, kHeads, false)));
}

TEST(SingleQueryAttentionTest, WithHiddenKeysEqualsTheRowOfTheWhole) {
  const auto qkv = test::random_normal({4, 6, 24}, 4, at::kDouble);
  const auto hidden = some_hidden(6);
  const auto actual = single_query_attention(qkv.select(1, 0).narrow(1, 0, 8), qkv.narrow(2, 8, 8),
                                             qkv.narrow(2, 16, 8), kHeads, /*last_key=*/{}, hidden);
  EXPECT_TRUE(test::tensors_near("row", actual, reference(qkv, hidden).select(1, 0), {0, 1e-12}));
}

}  // namespace
}  // namespace contrastive::models::detail
