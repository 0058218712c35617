#include "contrastive/adapt/timo.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "contrastive/adapt/gda.h"
#include "contrastive/core/error.h"

#include "tests/support/adapt_cases.h"
#include "tests/support/errors.h"

namespace contrastive::adapt {
namespace {

using test::classifier_of;
using test::random_support;
using test::tensors_equal;
using test::tensors_near;
using test::unit_rows;

/// Random prompts, so many of each class.
TextClassifier random_prompts(const std::vector<int64_t>& counts, int64_t dim, uint64_t seed) {
  const auto drawn = random_support(counts, dim, 0, seed);
  return make_text_classifier(drawn.keys, drawn.labels, std::vector<std::string>(counts.size(), "name"));
}

torch::Tensor fitted_logits(const SupportFeatures& support, const TextClassifier& classifier,
                            const torch::Tensor& queries, const ParameterValues& values, TimoOptions options = {}) {
  Timo timo(options);
  timo.fit(support, classifier);
  return timo.logits(queries, values);
}

torch::Tensor class_mean(const SupportFeatures& support, int64_t label) {
  auto sum = at::zeros({support.keys.size(1)}, at::kDouble);
  for (int64_t j = 0; j < support.size(); ++j) {
    if (support.labels[j].item<int64_t>() == label) sum = sum + support.keys[j];
  }
  return sum / std::sqrt(sum.dot(sum).item<double>());
}

/// A prompt, its class and how well it matches the class's images.
struct Match {
  int64_t prompt;
  double cosine;
};

std::vector<Match> matches_of(const SupportFeatures& support, const TextClassifier& classifier, int64_t label) {
  std::vector<Match> matches;
  const auto mean = class_mean(support, label);
  for (int64_t p = 0; p < classifier.prompts.size(0); ++p) {
    if (classifier.prompt_class[p].item<int64_t>() != label) continue;
    matches.push_back({p, classifier.prompts[p].dot(mean).item<double>()});
  }
  return matches;
}

/// The text weights, prompt by prompt. [C, D]
torch::Tensor naive_text_weights(const SupportFeatures& support, const TextClassifier& classifier, double gamma) {
  std::vector<torch::Tensor> rows;
  for (int64_t c = 0; c < support.num_classes; ++c) {
    const auto matches = matches_of(support, classifier, c);
    double squares = 0;
    for (const auto& match : matches) squares += match.cosine * match.cosine;
    double sum = 0;
    for (const auto& match : matches) sum += std::exp(gamma * match.cosine / std::sqrt(squares));
    auto row = at::zeros({support.keys.size(1)}, at::kDouble);
    for (const auto& match : matches) {
      row = row + classifier.prompts[match.prompt] * (std::exp(gamma * match.cosine / std::sqrt(squares)) / sum);
    }
    rows.push_back(row / std::sqrt(row.dot(row).item<double>()));
  }
  return at::stack(rows);
}

/// What the images' views and the best prompts of every class give, by the definition with an explicit inverse.
torch::Tensor naive_gaussian_logits(const SupportFeatures& support, const TextClassifier& classifier,
                                    const torch::Tensor& queries, size_t prompts_per_class) {
  const auto dim = queries.size(1);
  std::vector<torch::Tensor> means;
  std::vector<torch::Tensor> centred;
  for (int64_t c = 0; c < support.num_classes; ++c) {
    std::vector<torch::Tensor> samples;
    auto matches = matches_of(support, classifier, c);
    std::stable_sort(matches.begin(), matches.end(),
                     [](const Match& a, const Match& b) { return a.cosine > b.cosine; });
    matches.resize(std::min(matches.size(), prompts_per_class));
    for (const auto& match : matches) samples.push_back(classifier.prompts[match.prompt] * match.cosine);
    for (int64_t j = 0; j < support.size(); ++j) {
      if (support.labels[j].item<int64_t>() != c) continue;
      for (int64_t v = 0; v < support.views.size(1); ++v) samples.push_back(support.views[j][v]);
    }
    means.push_back(at::stack(samples).mean(0));
    for (const auto& sample : samples) centred.push_back(sample - means.back());
  }
  const auto rows = at::stack(centred);
  const auto covariance = rows.t().matmul(rows) / (rows.size(0) - 1);
  const auto identity = at::eye(dim, at::kDouble);
  const auto precision =
      at::linalg_inv(covariance * (rows.size(0) - 1) + identity * covariance.trace()) * static_cast<double>(dim);
  std::vector<torch::Tensor> columns;
  for (const auto& mean : means) {
    const auto weight = precision.matmul(mean);
    columns.push_back(queries.matmul(weight) - mean.dot(weight) / 2 - std::log(static_cast<double>(means.size())));
  }
  return at::stack(columns, 1);
}

class TimoTest : public ::testing::Test {
 protected:
  SupportFeatures support = random_support({2, 3, 1}, 8, 2, 31);
  TextClassifier classifier = random_prompts({3, 5, 4}, 8, 33);
  torch::Tensor queries = unit_rows({7, 8}, 34);
};

TEST_F(TimoTest, EqualsTheFormulasInLoops) {
  for (const double gamma : {0.0, 5.0, 50.0}) {
    const auto expected = naive_gaussian_logits(support, classifier, queries, 100) +
                          queries.matmul(naive_text_weights(support, classifier, gamma).t()) * 30;
    EXPECT_TRUE(
        tensors_near("logits", fitted_logits(support, classifier, queries, {gamma, 30}), expected, {.absolute = 1e-10}))
        << "gamma " << gamma;
  }
}

TEST_F(TimoTest, TakesTheBestMatchingPromptsAsSamples) {
  for (const int64_t count : {1, 2, 4}) {
    const auto expected = naive_gaussian_logits(support, classifier, queries, static_cast<size_t>(count)) +
                          queries.matmul(naive_text_weights(support, classifier, 50).t()) * 100;
    EXPECT_TRUE(tensors_near("logits",
                             fitted_logits(support, classifier, queries, {50, 100}, {.prompts_per_class = count}),
                             expected, {.absolute = 1e-10}))
        << count << " prompts a class";
  }
}

TEST_F(TimoTest, WeighsPromptsAlikeAtGammaZero) {
  Timo timo;
  timo.fit(support, classifier);
  const auto text = timo.logits(queries, {0, 2}) - timo.logits(queries, {0, 1});
  // The classifier's own weights are the prompts' mean direction.
  EXPECT_TRUE(tensors_near("text logits", text, queries.matmul(classifier.weights.t()), {.absolute = 1e-12}));
}

TEST_F(TimoTest, TakesTheBestPromptAloneAtVeryLargeGamma) {
  Timo timo;
  timo.fit(support, classifier);
  const auto text = timo.logits(queries, {1e6, 2}) - timo.logits(queries, {1e6, 1});
  for (int64_t c = 0; c < 3; ++c) {
    const auto matches = matches_of(support, classifier, c);
    const auto best = std::max_element(matches.begin(), matches.end(),
                                       [](const Match& a, const Match& b) { return a.cosine < b.cosine; });
    EXPECT_TRUE(tensors_near("text logits", text.select(1, c), queries.matmul(classifier.prompts[best->prompt]),
                             {.absolute = 1e-10}))
        << "class " << c;
  }
}

TEST_F(TimoTest, OnePromptAClassIsGdaWithThePromptAsAnotherSample) {
  const auto one = random_prompts({1, 1, 1}, 8, 41);
  std::vector<torch::Tensor> samples;
  std::vector<int64_t> labels;
  for (int64_t c = 0; c < 3; ++c) {
    // A prompt times its cosine isn't a row of length 1, which keys must be: this is for a match of 1.
    samples.push_back(class_mean(support, c));
    labels.push_back(c);
    for (int64_t j = 0; j < support.size(); ++j) {
      if (support.labels[j].item<int64_t>() != c) continue;
      for (int64_t v = 0; v < 2; ++v) samples.push_back(support.views[j][v]), labels.push_back(c);
    }
  }
  auto matching = one;
  matching.prompts = at::stack({class_mean(support, 0), class_mean(support, 1), class_mean(support, 2)});
  matching.weights = matching.prompts;
  for (const double scale : {100.0, 14.0}) {
    matching.scale = scale;
    Gda gda;
    gda.fit({at::stack(samples), test::indices(labels), 3, {}}, matching);
    // GDA has `scale` times the text and alpha times the rest.
    EXPECT_TRUE(tensors_near("logits", fitted_logits(support, matching, queries, {50, 100}), gda.logits(queries, {1}),
                             {.absolute = 1e-10}));
  }
}

TEST_F(TimoTest, DoesNotDependOnOrderOfRowsClassesOrOnAxes) {
  const ParameterValues values{50, 100};
  const auto logits = fitted_logits(support, classifier, queries, values);
  const auto shuffled = support.rows(test::indices({1, 0, 4, 2, 3, 5}));
  EXPECT_TRUE(tensors_near("rows", fitted_logits(shuffled, classifier, queries, values), logits, {.absolute = 1e-9}));

  const auto place = test::indices({2, 0, 1});
  const SupportFeatures prompts{classifier.prompts, classifier.prompt_class, 3, {}};
  const auto moved = test::permuted_classes(prompts, place);
  const auto permuted = fitted_logits(test::permuted_classes(support, place),
                                      make_text_classifier(moved.keys, moved.labels, {"a", "b", "c"}), queries, values);
  EXPECT_TRUE(tensors_near("classes", permuted.index_select(1, place), logits, {.absolute = 1e-9}));

  const auto turn = test::rotation(8, 44);
  const SupportFeatures turned{support.keys.matmul(turn), support.labels, 3, support.views.matmul(turn)};
  const auto text = make_text_classifier(classifier.prompts.matmul(turn), classifier.prompt_class, {"a", "b", "c"});
  EXPECT_TRUE(
      tensors_near("axes", fitted_logits(turned, text, queries.matmul(turn), values), logits, {.absolute = 1e-9}));
}

TEST_F(TimoTest, ComputesInThePrecisionOfTheFeatures) {
  const auto single =
      fitted_logits(support.to(at::kFloat), classifier.to(at::kFloat), queries.to(at::kFloat), {50, 100});
  EXPECT_EQ(single.scalar_type(), at::kFloat);
  EXPECT_TRUE(tensors_near("fp32 logits", single.to(at::kDouble),
                           fitted_logits(support, classifier, queries, {50, 100}), {.absolute = 2e-4}));
}

TEST_F(TimoTest, ScoresTheSameAfterRestore) {
  Timo fitted;
  fitted.fit(support, classifier);
  Timo empty;
  EXPECT_TRUE(test::scores_after_restore(fitted, empty, {queries, {}}));
}

TEST_F(TimoTest, NeedsPromptsOfEveryClass) {
  Timo timo;
  auto none = classifier;
  none.prompts = torch::Tensor();
  EXPECT_EQ(test::message_of<DataError>([&] { timo.fit(support, none); }),
            "[timo] needs the embedding of every prompt, but the text classifier has none");
  auto some = classifier;
  some.prompts = classifier.prompts.slice(0, 0, 8);
  some.prompt_class = classifier.prompt_class.slice(0, 0, 8);
  EXPECT_EQ(test::message_of<DataError>([&] { timo.fit(support, some); }),
            "[timo] every class needs a prompt, but class 2 has none");
}

TEST_F(TimoTest, ShowsAndChecksItsOption) {
  EXPECT_EQ(Timo({.prompts_per_class = 4}).settings(),
            (std::map<std::string, std::string>{{"prompts_per_class", "4"}}));
  EXPECT_EQ(test::message_of<ConfigError>([] { Timo timo({.prompts_per_class = -1}); }),
            "[timo] prompts_per_class must be at least 1, or 0 for all, but is -1");
}

}  // namespace
}  // namespace contrastive::adapt
