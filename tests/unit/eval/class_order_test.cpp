#include "contrastive/eval/class_order.h"

#include <algorithm>
#include <functional>
#include <numeric>
#include <random>
#include <vector>

#include <gtest/gtest.h>

namespace contrastive::eval {
namespace {

constexpr uint64_t kSeed = 17;

/// What a classifier says of an image of a class.
using Classifier = std::function<int64_t(int64_t label, std::mt19937_64& random)>;

ConfusionCounts classify(const std::vector<int64_t>& class_samples, const Classifier& classifier) {
  std::mt19937_64 random(kSeed);
  ConfusionCounts confusion;
  for (size_t label = 0; label < class_samples.size(); ++label) {
    for (int64_t i = 0; i < class_samples[label]; ++i) {
      ++confusion[{static_cast<int64_t>(label), classifier(static_cast<int64_t>(label), random)}];
    }
  }
  return confusion;
}

/// Right with the given probability, else any class.
Classifier guessing(int64_t num_classes, double accuracy) {
  return [=](int64_t label, std::mt19937_64& random) {
    if (std::uniform_real_distribution<double>()(random) < accuracy) return label;
    return static_cast<int64_t>(random() % static_cast<uint64_t>(num_classes));
  };
}

/// The same behind names in another order.
Classifier renamed(const Classifier& classifier, const std::vector<int64_t>& names) {
  return [=](int64_t label, std::mt19937_64& random) { return names[static_cast<size_t>(classifier(label, random))]; };
}

/// A random order in which no class keeps its place.
std::vector<int64_t> permutation(int64_t size, uint64_t seed) {
  std::vector<int64_t> names(static_cast<size_t>(size));
  std::iota(names.begin(), names.end(), 0);
  std::mt19937_64 random(seed);
  const auto keeps_one = [&] {
    for (size_t i = 0; i < names.size(); ++i) {
      if (names[i] == static_cast<int64_t>(i)) return true;
    }
    return false;
  };
  do {
    std::shuffle(names.begin(), names.end(), random);
  } while (keeps_one());
  return names;
}

std::vector<int64_t> even(int64_t num_classes, int64_t samples) {
  return std::vector<int64_t>(static_cast<size_t>(num_classes), samples);
}

TEST(ClassOrderTest, SuspectsRandomPermutationsOfGoodClassifiers) {
  for (const int64_t num_classes : {10, 100, 500}) {
    for (uint64_t seed = 1; seed <= 3; ++seed) {
      for (const double accuracy : {0.45, 0.9}) {
        const auto names = permutation(num_classes, seed);
        const auto confusion = classify(even(num_classes, 20), renamed(guessing(num_classes, accuracy), names));
        const auto suspicion = suspect_class_order(confusion);
        ASSERT_TRUE(suspicion.has_value()) << num_classes << " classes, seed " << seed << ", accuracy " << accuracy;
        EXPECT_GT(suspicion->matched_accuracy, accuracy - 0.1);
        ASSERT_EQ(suspicion->examples.size(), 5U);
        for (const auto& example : suspicion->examples) {
          EXPECT_EQ(example.predicted, names[static_cast<size_t>(example.label)]);
          EXPECT_EQ(example.samples, 20);
          EXPECT_EQ(example.count, confusion.at({example.label, example.predicted}));
        }
      }
    }
  }
}

TEST(ClassOrderTest, SuspectsNamesThatAreShiftedByOne) {
  std::vector<int64_t> names(12);
  for (size_t i = 0; i < names.size(); ++i) names[i] = static_cast<int64_t>((i + 1) % names.size());
  EXPECT_TRUE(suspect_class_order(classify(even(12, 10), renamed(guessing(12, 0.7), names))).has_value());
}

TEST(ClassOrderTest, SaysNothingOfFewerThanEightClasses) {
  std::vector<int64_t> names{1, 2, 3, 4, 5, 6, 0};
  EXPECT_FALSE(suspect_class_order(classify(even(7, 50), renamed(guessing(7, 0.9), names))));
  names = {1, 2, 3, 4, 5, 6, 7, 0};
  EXPECT_TRUE(suspect_class_order(classify(even(8, 50), renamed(guessing(8, 0.9), names))));
}

TEST(ClassOrderTest, BelievesClassifiersThatSendEveryClassSomewhere) {
  // As models do that have hardly begun: several classes share one prediction, most predictions are never made.
  int64_t suspected = 0;
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    std::mt19937_64 random(seed);
    std::vector<int64_t> names;
    for (int64_t i = 0; i < 30; ++i) names.push_back(static_cast<int64_t>(random() % 30));
    suspected += suspect_class_order(classify(even(30, 20), renamed(guessing(30, 0.9), names))) ? 1 : 0;
  }
  EXPECT_EQ(suspected, 0);
}

TEST(ClassOrderTest, BelievesHonestClassifiersGoodOrWeak) {
  for (const int64_t num_classes : {3, 10, 100, 1000}) {
    for (const int64_t samples : {1, 4, 5, 6, 10, 50}) {
      for (const double accuracy : {0.0, 0.02, 0.1, 0.3, 0.6, 1.0}) {
        EXPECT_FALSE(suspect_class_order(classify(even(num_classes, samples), guessing(num_classes, accuracy))))
            << num_classes << " classes, " << samples << " samples each, accuracy " << accuracy;
      }
    }
  }
}

TEST(ClassOrderTest, NeverSuspectsFewSamplesAClass) {
  const auto names = permutation(500, 1);
  EXPECT_FALSE(suspect_class_order(classify(even(500, 1), renamed(guessing(500, 1.0), names))));
  EXPECT_FALSE(suspect_class_order(classify(even(500, 4), guessing(500, 0.0))));
  auto mostly_small = even(500, 1);
  mostly_small[3] = mostly_small[4] = mostly_small[5] = 20;
  EXPECT_FALSE(suspect_class_order(classify(mostly_small, renamed(guessing(500, 1.0), names))));
}

TEST(ClassOrderTest, DoesNotMistakeAFavouriteClassForAnOrder) {
  const Classifier always_two = [](int64_t, std::mt19937_64&) { return int64_t{2}; };
  EXPECT_FALSE(suspect_class_order(classify(even(10, 50), always_two)));
  EXPECT_FALSE(suspect_class_order(classify({900, 20, 30, 50}, always_two)));
  const Classifier two_or_three = [](int64_t, std::mt19937_64& random) {
    return static_cast<int64_t>(2 + random() % 2);
  };
  EXPECT_FALSE(suspect_class_order(classify({500, 400, 10, 10}, two_or_three)));
  EXPECT_FALSE(suspect_class_order(classify({900, 20, 30, 50, 400}, guessing(5, 0.1))));
}

TEST(ClassOrderTest, SuspectsUnbalancedClassesInAnotherOrder) {
  EXPECT_TRUE(suspect_class_order(
      classify({200, 20, 30, 50, 100, 40, 80, 25, 60}, renamed(guessing(9, 0.8), {3, 0, 4, 1, 2, 8, 5, 6, 7}))));
}

TEST(ClassOrderTest, SaysNothingOfTwoClassesOrNone) {
  EXPECT_FALSE(suspect_class_order({}));
  EXPECT_FALSE(suspect_class_order({{{0, 1}, 50}, {{1, 0}, 50}}));
  EXPECT_FALSE(suspect_class_order({{{0, -1}, 50}, {{1, -1}, 50}, {{2, -1}, 50}}));
}

TEST(NearChanceTest, IsWithinThreeDeviationsOfGuessing) {
  // 10 classes, 900 samples: deviation sqrt(0.1 * 0.9 / 900) = 0.01.
  EXPECT_TRUE(is_near_chance(0.0, 10, 900));
  EXPECT_TRUE(is_near_chance(0.129, 10, 900));
  EXPECT_FALSE(is_near_chance(0.131, 10, 900));
  EXPECT_FALSE(is_near_chance(0.0, 10, 0));
  EXPECT_FALSE(is_near_chance(1.0, 1, 10));
}

}  // namespace
}  // namespace contrastive::eval
