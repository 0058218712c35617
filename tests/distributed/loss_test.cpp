#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/record_function.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "contrastive/loss/contrastive_loss.h"
#include "contrastive/loss/sigmoid_loss.h"

#include "tests/support/ranks.h"
#include "tests/support/tensors.h"

namespace contrastive::loss {
namespace {

using distributed::ProcessGroup;

/// A batch that ranks share. Texts of a confident one are their images with a little noise.
struct LossCase {
  int64_t rows_per_rank, dim;
  double scale;
  bool is_confident;
  torch::ScalarType dtype;
  test::Tolerance tolerance;
};

/// Features and parameters, or their gradients, and what the loss returned.
struct Values {
  torch::Tensor image, text, scale, bias, loss, accuracy;
};

std::vector<LossCase> cases() {
  std::vector<LossCase> result;
  for (const double scale : {1.0, 14.3, 100.0}) {
    for (const bool is_confident : {false, true}) {
      for (const auto& [rows, dim] : {std::pair{1, 5}, std::pair{7, 16}, std::pair{37, 33}}) {
        result.push_back({rows, dim, scale, is_confident, at::kDouble, {1e-14, 1e-12}});
        result.push_back({rows, dim, scale, is_confident, at::kFloat, {2e-7 * scale, 1e-5}});
      }
    }
  }
  return result;
}

std::string name_of(const LossCase& c) {
  return std::string(c.dtype == at::kDouble ? "fp64" : "fp32") + " [" + std::to_string(c.rows_per_rank) + ", " +
         std::to_string(c.dim) + "] scale " + std::to_string(c.scale) + (c.is_confident ? " confident" : "");
}

torch::Tensor unit_rows(const torch::Tensor& x) {
  return x / x.norm(2, 1, true);
}

/// The global batch, in double precision but with the values of the case's.
Values inputs_of(const LossCase& c, int64_t ranks) {
  const std::vector<int64_t> shape{ranks * c.rows_per_rank, c.dim};
  const auto image = unit_rows(test::random_normal(shape, 1, at::kDouble));
  auto text = test::random_normal(shape, 2, at::kDouble);
  if (c.is_confident) text = image + 0.1 * text;
  const auto exact = [&](const torch::Tensor& x) { return x.to(c.dtype).to(at::kDouble); };
  const auto scalar = [&](double value) { return exact(at::full({}, value, at::kDouble)); };
  return {exact(image), exact(unit_rows(text)), scalar(c.scale), scalar(-c.scale / 2), {}, {}};
}

/// Loss and gradients of `compute` at these inputs; rows [begin, end) of the features.
template <typename Compute>
Values evaluated(const Values& inputs, torch::ScalarType dtype, int64_t begin, int64_t end, const Compute& compute) {
  const auto leaf = [&](const torch::Tensor& x) { return x.to(dtype).clone().requires_grad_(); };
  Values leaves{leaf(inputs.image.slice(0, begin, end)),
                leaf(inputs.text.slice(0, begin, end)),
                leaf(inputs.scale),
                leaf(inputs.bias),
                {},
                {}};
  const ContrastiveLossOutput output = compute(leaves);
  output.loss.backward();
  const auto gradient = [](const torch::Tensor& x) { return x.grad().defined() ? x.grad() : at::zeros_like(x); };
  return {gradient(leaves.image), gradient(leaves.text), gradient(leaves.scale),
          gradient(leaves.bias),  output.loss.detach(),  output.accuracy};
}

torch::Tensor accuracy_of(const torch::Tensor& logits) {
  return (logits.argmax(1) == at::arange(logits.size(0))).to(at::kDouble).mean();
}

/// Figure 3 of Radford et al. 2021.
ContrastiveLossOutput textbook_contrastive(const Values& in) {
  const auto logits = in.scale * in.image.mm(in.text.t());
  const auto labels = at::arange(logits.size(0));
  return {(at::cross_entropy_loss(logits, labels) + at::cross_entropy_loss(logits.t(), labels)) / 2,
          accuracy_of(logits)};
}

/// Equation 1 of Zhai et al. 2023.
ContrastiveLossOutput textbook_sigmoid(const Values& in) {
  const auto logits = in.scale * in.image.mm(in.text.t()) + in.bias;
  const auto signs = 2 * at::eye(logits.size(0), logits.options()) - 1;
  return {-at::log_sigmoid(signs * logits).sum() / logits.size(0), accuracy_of(logits)};
}

/// Compares one rank's values to the whole batch's. Gradients of parameters are summed over ranks first.
void expect_share(const std::string& name, Values actual, const Values& expected, const LossCase& c,
                  const ProcessGroup& group) {
  group.all_reduce(actual.scale);
  group.all_reduce(actual.bias);
  const auto rows = [&](const torch::Tensor& x) {
    return x.narrow(0, group.rank() * c.rows_per_rank, c.rows_per_rank);
  };
  const auto expect = [&](const char* what, const torch::Tensor& x, const torch::Tensor& y) {
    EXPECT_TRUE(test::tensors_near(name + ": " + what, x.to(at::kDouble), y, c.tolerance));
  };
  expect("image gradient", actual.image, rows(expected.image));
  expect("text gradient", actual.text, rows(expected.text));
  expect("scale gradient", actual.scale, expected.scale);
  expect("bias gradient", actual.bias, expected.bias);
  expect("loss", actual.loss, expected.loss);
  expect("accuracy", actual.accuracy, expected.accuracy);
}

void expect_textbook(const LossCase& c, const ProcessGroup& group) {
  const auto inputs = inputs_of(c, group.size());
  const auto begin = group.rank() * c.rows_per_rank, all = group.size() * c.rows_per_rank;
  const auto share = [&](const auto& compute) {
    return evaluated(inputs, c.dtype, begin, begin + c.rows_per_rank, compute);
  };
  expect_share("contrastive " + name_of(c),
               share([&](const Values& in) { return contrastive_loss(in.image, in.text, in.scale, group); }),
               evaluated(inputs, at::kDouble, 0, all, textbook_contrastive), c, group);
  expect_share("sigmoid " + name_of(c),
               share([&](const Values& in) { return sigmoid_loss(in.image, in.text, in.scale, in.bias, group); }),
               evaluated(inputs, at::kDouble, 0, all, textbook_sigmoid), c, group);
}

TEST(DistributedLossTest, RanksTogetherEqualTheTextbookFormulaOfTheWholeBatch) {
  for (const int ranks : {1, 2, 3, 4}) {
    test::run_on_ranks(ranks, [](const ProcessGroup& group) {
      for (const auto& c : cases()) expect_textbook(c, group);
    });
  }
}

TEST(DistributedLossTest, SeveralTilesInEachDirectionEqualTheTextbookFormula) {
  // A rank's 1,500 x 3,000 pairs are more than one tile.
  test::run_on_ranks(2, [](const ProcessGroup& group) {
    expect_textbook({1500, 9, 14.3, false, at::kDouble, {1e-14, 1e-12}}, group);
    expect_textbook({1500, 9, 100.0, true, at::kFloat, {2e-5, 1e-5}}, group);
  });
}

TEST(DistributedLossTest, Bf16FeaturesGiveTheLossOfTheirValues) {
  test::run_on_ranks(2, [](const ProcessGroup& group) {
    const LossCase c{24, 16, 14.3, false, at::kBFloat16, {}};
    const auto inputs = inputs_of(c, group.size());
    const auto begin = group.rank() * c.rows_per_rank;
    const auto expected = evaluated(inputs, at::kDouble, 0, 2 * c.rows_per_rank, textbook_contrastive);
    const auto actual = evaluated(inputs, c.dtype, begin, begin + c.rows_per_rank, [&](const Values& in) {
      return contrastive_loss(in.image, in.text, in.scale, group);
    });
    EXPECT_EQ(actual.loss.scalar_type(), at::kFloat);
    EXPECT_EQ(actual.text.scalar_type(), at::kBFloat16);
    EXPECT_TRUE(test::tensors_near("loss", actual.loss.to(at::kDouble), expected.loss, {0, 1e-6}));
    EXPECT_TRUE(test::tensors_near("text gradient", actual.text.to(at::kDouble),
                                   expected.text.narrow(0, begin, c.rows_per_rank), {0, 4e-3}));
  });
}

TEST(DistributedLossTest, TheLossHasTheSameBitsOnEveryRank) {
  test::run_on_ranks(3, [](const ProcessGroup& group) {
    const LossCase c{37, 33, 14.3, false, at::kFloat, {}};
    const auto inputs = inputs_of(c, group.size());
    const auto image = inputs.image.narrow(0, group.rank() * 37, 37).to(at::kFloat);
    const auto text = inputs.text.narrow(0, group.rank() * 37, 37).to(at::kFloat);
    const auto loss = contrastive_loss(image, text, at::full({}, c.scale), group).loss;
    const auto losses = group.all_gather(loss.reshape({1}));
    EXPECT_TRUE((losses == losses[0]).all().item<bool>()) << losses;
  });
}

/// What one rank gets with a tower locked, against the whole batch's values where nothing is.
void expect_share_with_a_locked_tower(const LossCase& c, bool locks_image, const ProcessGroup& group) {
  const auto inputs = inputs_of(c, group.size());
  const auto begin = group.rank() * c.rows_per_rank, all = group.size() * c.rows_per_rank;
  const auto expect = [&](const std::string& name, const auto& compute, const auto& textbook) {
    const auto actual = evaluated(inputs, c.dtype, begin, begin + c.rows_per_rank, [&](const Values& in) {
      (locks_image ? in.image : in.text).set_requires_grad(false);
      return compute(in);
    });
    auto expected = evaluated(inputs, at::kDouble, 0, all, textbook);
    (locks_image ? expected.image : expected.text).zero_();
    expect_share(name + name_of(c) + (locks_image ? ", image locked" : ", text locked"), actual, expected, c, group);
  };
  expect(
      "contrastive ", [&](const Values& in) { return contrastive_loss(in.image, in.text, in.scale, group); },
      textbook_contrastive);
  expect(
      "sigmoid ", [&](const Values& in) { return sigmoid_loss(in.image, in.text, in.scale, in.bias, group); },
      textbook_sigmoid);
}

TEST(DistributedLossTest, ALockedTowerChangesNoOtherValue) {
  for (const int ranks : {1, 2, 3, 4}) {
    test::run_on_ranks(ranks, [](const ProcessGroup& group) {
      for (const auto& c : cases()) {
        expect_share_with_a_locked_tower(c, /*locks_image=*/true, group);
        expect_share_with_a_locked_tower(c, /*locks_image=*/false, group);
      }
    });
  }
}

TEST(DistributedLossTest, ALockedTowerChangesNoOtherValueOverSeveralTiles) {
  test::run_on_ranks(2, [](const ProcessGroup& group) {
    for (const bool locks_image : {true, false}) {
      expect_share_with_a_locked_tower({1500, 9, 14.3, false, at::kDouble, {1e-14, 1e-12}}, locks_image, group);
      expect_share_with_a_locked_tower({1500, 9, 100.0, true, at::kFloat, {2e-5, 1e-5}}, locks_image, group);
    }
  });
}

TEST(DistributedLossTest, OfTextsThatScoreAlikeTheFirstIsTheAnswerAlsoWithLockedImages) {
  test::run_on_ranks(3, [](const ProcessGroup& group) {
    // Each rank's five pairs are of three kinds, so that the texts of a kind tie exactly, within and across ranks.
    const auto kinds = at::arange(15, at::kLong).remainder(3);
    const auto rows = at::eye(3, at::kDouble).index_select(0, kinds).narrow(0, group.rank() * 5, 5);
    const auto text = rows.clone().requires_grad_();
    const auto scale = at::full({}, 2.0, at::kDouble), bias = at::full({}, -1.0, at::kDouble);
    EXPECT_EQ(contrastive_loss(rows, text, scale, group).accuracy.item<double>(), 3.0 / 15);
    EXPECT_EQ(sigmoid_loss(rows, text, scale, bias, group).accuracy.item<double>(), 3.0 / 15);
  });
}

/// The collective operations of a stretch of code and the sizes of the sums that it began, by LibTorch's own records.
class Recorded {
 public:
  Recorded() {
    collectives().clear();
    zeros().clear();
    handle_ = at::addGlobalCallback(at::RecordFunctionCallback(record).needsInputs(true));
  }
  ~Recorded() { at::removeCallback(handle_); }
  Recorded(const Recorded&) = delete;
  Recorded& operator=(const Recorded&) = delete;

  int64_t gathers() const { return count(collectives(), std::string("gloo:all_gather")); }
  /// LibTorch makes a reduce_scatter out of these over Gloo.
  int64_t reductions() const { return count(collectives(), std::string("gloo:all_reduce")); }
  int64_t sums_of_size(std::vector<int64_t> sizes) const { return count(zeros(), sizes); }

 private:
  template <typename T>
  static int64_t count(const std::vector<T>& values, const T& value) {
    return std::count(values.begin(), values.end(), value);
  }

  static std::vector<std::string>& collectives() {
    static std::vector<std::string> names;
    return names;
  }

  static std::vector<std::vector<int64_t>>& zeros() {
    static std::vector<std::vector<int64_t>> sizes;
    return sizes;
  }

  static std::unique_ptr<at::ObserverContext> record(const at::RecordFunction& function) {
    const std::string name = function.name();
    if (name.starts_with("gloo:")) collectives().push_back(name);
    if (name == "aten::zeros") zeros().push_back(function.inputs()[0].toIntVector());
    return nullptr;
  }

  at::CallbackHandle handle_;
};

TEST(DistributedLossTest, GradientsOfFeaturesCrossRanksOnlyIfBothTowersTrain) {
  test::run_on_ranks(2, [](const ProcessGroup& group) {
    const LossCase c{21, 9, 14.3, false, at::kDouble, {1e-14, 1e-12}};
    const auto inputs = inputs_of(c, group.size());
    const auto expect = [&](bool image, bool text, bool is_sigmoid, int64_t gradients, int64_t reductions) {
      const Recorded recorded;
      evaluated(inputs, c.dtype, group.rank() * 21, group.rank() * 21 + 21, [&](const Values& in) {
        in.image.set_requires_grad(image);
        in.text.set_requires_grad(text);
        if (is_sigmoid) return sigmoid_loss(in.image, in.text, in.scale, in.bias, group);
        return contrastive_loss(in.image, in.text, in.scale, group);
      });
      EXPECT_EQ(recorded.gathers(), 2) << "of the shapes, and of one side's features";
      EXPECT_EQ(recorded.sums_of_size({42, 9}), gradients) << "gradients of all ranks' features";
      EXPECT_EQ(recorded.reductions(), reductions);
    };
    // Of the totals, and of the gradients or (images locked) of the best logits of each image.
    expect(true, true, /*is_sigmoid=*/true, 1, 2);
    expect(false, true, true, 0, 2);
    expect(true, false, true, 0, 1);
    expect(false, false, true, 0, 1);
    // Three more for the softmax of the columns.
    expect(true, true, /*is_sigmoid=*/false, 1, 5);
    expect(false, true, false, 0, 5);
    expect(true, false, false, 0, 4);
    expect(false, false, false, 0, 4);
  });
}

TEST(DistributedLossTest, RanksThatLockDifferentTowersAreRefused) {
  test::run_on_ranks(2, [](const ProcessGroup& group) {
    const auto image = at::eye(4).requires_grad_(group.rank() == 1), text = at::eye(4).requires_grad_();
    try {
      contrastive_loss(image, text, at::ones({}), group);
      ADD_FAILURE() << "no error";
    } catch (const c10::Error& error) {
      EXPECT_STREQ(error.what_without_backtrace(),
                   "[contrastive_loss] every rank must need the gradients of the same features, but rank 0 needs text, "
                   "rank 1 needs image and text");
    }
  });
}

std::string error_of(const torch::Tensor& image, const torch::Tensor& text, const ProcessGroup& group) {
  try {
    contrastive_loss(image, text, at::ones({}), group);
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  }
  return "no error";
}

TEST(DistributedLossTest, SharesOfDifferentSizesAreRefusedOnEveryRank) {
  test::run_on_ranks(2, [](const ProcessGroup& group) {
    const auto rows = at::ones({group.rank() == 0 ? 12 : 8, 4});
    EXPECT_EQ(error_of(rows, rows, group),
              "[contrastive_loss] every rank must pass the same number of rows, but rank 0 has 12, rank 1 has 8");
    const auto columns = at::ones({3, group.rank() == 0 ? 4 : 5});
    EXPECT_EQ(error_of(columns, columns, group),
              "[contrastive_loss] every rank must pass features of the same width, but rank 0 has 4, rank 1 has 5");
    // The group is still in order.
    const auto equal = at::eye(4);
    EXPECT_EQ(error_of(equal, equal, group), "no error");
  });
}

}  // namespace
}  // namespace contrastive::loss
