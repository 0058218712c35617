#include "contrastive/adapt/tip_adapter_f.h"

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

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

torch::Tensor key_of(const Adapter& adapter) {
  return test::by_name(adapter.state()).at("keys");
}

torch::Tensor trained_keys(const SupportFeatures& support, const TextClassifier& classifier,
                           const TipAdapterFOptions& options) {
  TipAdapterF adapter(options);
  adapter.fit(support, classifier);
  return key_of(adapter);
}

/// The mean cross-entropy of the logits, image by image and class by class.
double naive_loss(const SupportFeatures& cache, const torch::Tensor& features, const torch::Tensor& labels,
                  const torch::Tensor& weights, double alpha, double beta) {
  double loss = 0;
  for (int64_t i = 0; i < features.size(0); ++i) {
    std::vector<double> logits;
    for (int64_t c = 0; c < weights.size(0); ++c) {
      logits.push_back(100 * features[i].dot(weights[c]).item<double>());
      for (int64_t j = 0; j < cache.size(); ++j) {
        if (cache.labels[j].item<int64_t>() != c) continue;
        logits.back() += alpha * std::exp(-beta * (1 - features[i].dot(cache.keys[j]).item<double>()));
      }
    }
    double sum = 0;
    const double own = logits[static_cast<size_t>(labels[i].item<int64_t>())];
    for (const double logit : logits) sum += std::exp(logit - own);
    loss += std::log(sum) / static_cast<double>(features.size(0));
  }
  return loss;
}

TEST(TipAdapterFTest, WithoutStepsIsTipAdapter) {
  const auto fixture = test::adapt_fixture_f2();
  TipAdapterF adapter({.epochs = 0});
  adapter.fit(test::support_of(fixture), classifier_of(fixture.weights));
  const auto logits = adapter.logits(fixture.queries, {5.5, 50});
  EXPECT_NEAR(logits.sum().item<double>(), 1858.814477390, 1e-9);
  EXPECT_TRUE(
      tensors_equal("predictions", test::predictions(logits), test::indices({0, 0, 4, 5, 4, 1, 0, 0, 0, 3, 4, 0})));
}

TEST(TipAdapterFTest, GradientOfTheKeysEqualsFiniteDifferences) {
  const double alpha = 3;
  const double beta = 2;
  auto cache = random_support({2, 1, 3}, 5, 0, 1);
  const auto features = unit_rows({4, 5}, 2);
  const auto labels = test::indices({0, 2, 1, 2});
  // Weights this small keep the softmax away from 0 and 1, where gradients vanish.
  const auto weights = unit_rows({3, 5}, 3) * 0.02;
  const auto zero_shot = features.matmul(weights.t()) * 100;
  const auto result = cache_loss(cache, features, labels, zero_shot, alpha, beta);
  EXPECT_NEAR(result.loss, naive_loss(cache, features, labels, weights, alpha, beta), 1e-12);
  EXPECT_GT(result.gradient.abs().max().item<double>(), 0.05);
  constexpr double kStep = 1e-5;
  const auto keys = cache.keys;
  for (int64_t j = 0; j < keys.size(0); ++j) {
    for (int64_t d = 0; d < keys.size(1); ++d) {
      double losses[2];
      for (const int side : {0, 1}) {
        cache.keys = keys.clone();
        cache.keys[j][d] += side == 0 ? -kStep : kStep;
        losses[side] = naive_loss(cache, features, labels, weights, alpha, beta);
      }
      EXPECT_NEAR(result.gradient[j][d].item<double>(), (losses[1] - losses[0]) / (2 * kStep), 1e-6)
          << "key " << j << ", dimension " << d;
    }
  }
}

/// AdamW as published, for keys whose every step sees all samples: here the order of samples doesn't matter.
TEST(TipAdapterFTest, TakesStepsOfAdamWAlongACosineOverTheViews) {
  const auto support = random_support({2, 3}, 4, 3, 11);
  const auto classifier = classifier_of(unit_rows({2, 4}, 13) * 0.02);
  const TipAdapterFOptions options{.epochs = 5, .lr = 0.02, .eps = 1e-4, .weight_decay = 0.3, .alpha = 2, .beta = 1.5};
  auto cache = support;
  cache.keys = support.keys.clone();
  auto m = at::zeros_like(cache.keys);
  auto v = at::zeros_like(cache.keys);
  for (int64_t t = 1; t <= options.epochs; ++t) {
    const auto features = support.views.select(1, (t - 1) % 3);
    const auto gradient = cache_loss(cache, features, support.labels, classifier.logits(features), 2, 1.5).gradient;
    const auto step = static_cast<double>(t);
    const double lr = 0.02 * (1 + std::cos(M_PI * (step - 1) / 5)) / 2;
    m = m * 0.9 + gradient * 0.1;
    v = v * 0.999 + gradient * gradient * 0.001;
    const auto root = (v / (1 - std::pow(0.999, step))).sqrt() + 1e-4;
    cache.keys = cache.keys * (1 - lr * 0.3) - m / (1 - std::pow(0.9, step)) / root * lr;
  }
  EXPECT_TRUE(tensors_near("keys", trained_keys(support, classifier, options), cache.keys, {.absolute = 1e-10}));
}

/// Classes of images far apart, whose texts mislead.
struct Toy {
  SupportFeatures support;
  TextClassifier classifier;
  torch::Tensor queries;
  torch::Tensor labels;
};

torch::Tensor toy_images(const torch::Tensor& centres, const torch::Tensor& labels, uint64_t seed) {
  const auto rows =
      centres.index_select(0, labels) + test::random_normal({labels.size(0), 16}, seed, at::kDouble) * 0.15;
  return rows / rows.norm(2, 1, true);
}

Toy make_toy() {
  const auto centres = unit_rows({4, 16}, 21);
  const auto labels = at::arange(4, at::kLong).repeat_interleave(8);
  Toy toy{{toy_images(centres, labels, 22), labels, 4, {}}, classifier_of(unit_rows({4, 16}, 23) * 0.2), {}, {}};
  toy.labels = at::arange(4, at::kLong).repeat_interleave(50);
  toy.queries = toy_images(centres, toy.labels, 24);
  return toy;
}

double accuracy(const Toy& toy, const TipAdapterFOptions& options) {
  TipAdapterF adapter(options);
  adapter.fit(toy.support, toy.classifier);
  const auto predicted = test::predictions(adapter.logits(toy.queries, adapter.fixed_values()));
  return predicted.eq(toy.labels).to(at::kDouble).mean().item<double>();
}

TEST(TipAdapterFTest, TrainingRaisesTheAccuracyWhereClassesCanBeSeparated) {
  const auto toy = make_toy();
  const TipAdapterFOptions untrained{.epochs = 0};
  const TipAdapterFOptions trained{.epochs = 50, .batch_size = 8, .lr = 0.02};
  EXPECT_LT(accuracy(toy, untrained), 0.7);
  EXPECT_GT(accuracy(toy, trained), 0.95);
}

TEST(TipAdapterFTest, IsAFunctionOfItsSeed) {
  const auto toy = make_toy();
  const TipAdapterFOptions options{.epochs = 2, .batch_size = 5, .seed = 3};
  auto other = options;
  other.seed = 4;
  const auto keys = trained_keys(toy.support, toy.classifier, options);
  EXPECT_TRUE(tensors_equal("keys", trained_keys(toy.support, toy.classifier, options), keys));
  EXPECT_FALSE(tensors_equal("keys", trained_keys(toy.support, toy.classifier, other), keys));
}

TEST(TipAdapterFTest, LeavesTheSupportSetAsItIs) {
  const auto toy = make_toy();
  const auto before = toy.support.keys.clone();
  EXPECT_FALSE(tensors_equal("keys", trained_keys(toy.support, toy.classifier, {}), before));
  EXPECT_TRUE(tensors_equal("keys", toy.support.keys, before));
}

TEST(TipAdapterFTest, ComputesInThePrecisionOfTheFeatures) {
  const auto toy = make_toy();
  const auto single = trained_keys(toy.support.to(at::kFloat), toy.classifier.to(at::kFloat), {});
  EXPECT_EQ(single.scalar_type(), at::kFloat);
  EXPECT_TRUE(tensors_near("fp32 keys", single.to(at::kDouble), trained_keys(toy.support, toy.classifier, {}),
                           {.absolute = 2e-4}));
}

TEST(TipAdapterFTest, DoesNotDependOnAxes) {
  const auto support = random_support({3, 2, 4}, 8, 2, 31);
  const auto classifier = classifier_of(unit_rows({3, 8}, 33));
  const auto queries = unit_rows({6, 8}, 34);
  const auto turn = test::rotation(8, 35);
  const SupportFeatures turned{support.keys.matmul(turn), support.labels, 3, support.views.matmul(turn)};
  // AdamW looks at each dimension by itself: this holds for the loss and for keys as they begin.
  TipAdapterF adapter({.epochs = 0});
  adapter.fit(support, classifier);
  TipAdapterF other({.epochs = 0});
  other.fit(turned, classifier_of(classifier.weights.matmul(turn)));
  EXPECT_TRUE(tensors_near("logits", other.logits(queries.matmul(turn), {2, 3}), adapter.logits(queries, {2, 3}),
                           {.absolute = 1e-11}));
  const auto zero_shot = classifier.logits(queries);
  const auto labels = test::indices({0, 1, 2, 0, 1, 2});
  const auto here = cache_loss(support, queries, labels, zero_shot, 3, 2);
  const auto there = cache_loss(turned, queries.matmul(turn), labels, zero_shot, 3, 2);
  EXPECT_NEAR(there.loss, here.loss, 1e-11);
  EXPECT_TRUE(tensors_near("gradient", there.gradient, here.gradient.matmul(turn), {.absolute = 1e-11}));
}

TEST(TipAdapterFTest, VisitsTheTermsOfEveryPointOfTheGrid) {
  const auto toy = make_toy();
  TipAdapterF adapter;
  adapter.fit(toy.support, toy.classifier);
  const auto betas = adapter.parameters()[0].grid;
  ASSERT_EQ(betas.size(), 200U);
  const auto queries = toy.queries.slice(0, 0, 10);
  int64_t next = 0;
  adapter.visit_terms({queries, {}}, [&](int64_t, int64_t point, const ScoreTerms& terms) {
    EXPECT_EQ(point, next++);
    EXPECT_TRUE(tensors_near("logits", terms.base + terms.inner * 2,
                             adapter.logits(queries, {betas[static_cast<size_t>(point)], 2}), {.absolute = 1e-10}));
  });
  EXPECT_EQ(next, 200);
}

TEST(TipAdapterFTest, ScoresTheSameAfterRestore) {
  const auto toy = make_toy();
  TipAdapterF fitted;
  fitted.fit(toy.support, toy.classifier);
  TipAdapterF empty;
  EXPECT_TRUE(test::scores_after_restore(fitted, empty, {toy.queries, {}}));
}

TEST(TipAdapterFTest, TellsThatKeysDiverged) {
  const auto toy = make_toy();
  TipAdapterF adapter({.epochs = 1, .lr = 1e300, .weight_decay = 1e300});
  EXPECT_EQ(test::message_of<TrainingError>([&] { adapter.fit(toy.support, toy.classifier); }),
            "[tip-adapter-f] keys are no longer finite after 1 steps at lr 1e+300");
}

TEST(TipAdapterFTest, ShowsItsSettings) {
  const auto settings = TipAdapterF({.epochs = 100, .seed = 7}).settings();
  EXPECT_EQ(settings.at("epochs"), "100");
  EXPECT_EQ(settings.at("batch_size"), "256");
  EXPECT_EQ(settings.at("lr"), "0.001");
  EXPECT_EQ(settings.at("eps"), "0.0001");
  EXPECT_EQ(settings.at("weight_decay"), "0.01");
  EXPECT_EQ(settings.at("alpha"), "1.17");
  EXPECT_EQ(settings.at("beta"), "1");
  EXPECT_EQ(settings.at("max_alpha"), "3");
  EXPECT_EQ(settings.at("max_beta"), "7");
  EXPECT_EQ(settings.at("seed"), "7");
  EXPECT_EQ(settings.size(), 10U);
}

TEST(TipAdapterFTest, RefusesOptionsOutOfRange) {
  const auto message = [](TipAdapterFOptions options) {
    return test::message_of<ConfigError>([&] { TipAdapterF adapter(options); });
  };
  EXPECT_EQ(message({.epochs = -1}), "[tip-adapter-f] epochs must be at least 0, but is -1");
  EXPECT_EQ(message({.batch_size = 0}), "[tip-adapter-f] batch_size must be at least 1, but is 0");
  EXPECT_EQ(message({.lr = 0}), "[tip-adapter-f] lr must be above 0, but is 0");
  EXPECT_EQ(message({.eps = -1}), "[tip-adapter-f] eps must be above 0, but is -1");
  EXPECT_EQ(message({.weight_decay = -0.1}), "[tip-adapter-f] weight_decay must be at least 0, but is -0.1");
  EXPECT_EQ(message({.alpha = std::nan("")}), "[tip-adapter-f] alpha must be above 0, but is nan");
  EXPECT_EQ(message({.beta = 0}), "[tip-adapter-f] beta must be above 0, but is 0");
  EXPECT_EQ(message({.max_alpha = 0.1}), "[tip-adapter-f] max_alpha must be above 0.1, but is 0.1");
  EXPECT_EQ(message({.max_beta = 0}), "[tip-adapter-f] max_beta must be above 0.1, but is 0");
  EXPECT_EQ(message({.seed = -1}), "[tip-adapter-f] seed must be at least 0, but is -1");
}

}  // namespace
}  // namespace contrastive::adapt
