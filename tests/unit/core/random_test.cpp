// Exact numbers were computed by a separate Python program from the description in random.h, with a SplitMix64 that
// gives the published outputs for seed 1234567. Statistical bounds are those that chance exceeds once in 10^9 runs;
// seeds are fixed, so the tests give the same result every time.
#include "contrastive/core/random.h"

#include <bit>
#include <cmath>
#include <cstdint>
#include <set>
#include <vector>

#include <gtest/gtest.h>

#include "contrastive/core/error.h"

namespace contrastive {
namespace {

/// An upper bound of chi-square with that many degrees of freedom at a probability of 1e-9: Wilson and Hilferty's
/// approximation, six standard deviations up.
double chi_square_bound(double degrees) {
  const double spread = 2.0 / (9.0 * degrees);
  return degrees * std::pow(1.0 - spread + 6.0 * std::sqrt(spread), 3);
}

double chi_square(const std::vector<int64_t>& counts) {
  double total = 0;
  for (const auto count : counts) total += static_cast<double>(count);
  const double expected = total / static_cast<double>(counts.size());
  double sum = 0;
  for (const auto count : counts)
    sum += (static_cast<double>(count) - expected) * (static_cast<double>(count) - expected);
  return sum / expected;
}

void expect_uniform(const std::vector<int64_t>& counts) {
  EXPECT_LT(chi_square(counts), chi_square_bound(static_cast<double>(counts.size() - 1)));
}

std::vector<uint64_t> draws(RandomStream stream, int count = 3) {
  std::vector<uint64_t> values;
  for (int i = 0; i < count; ++i) values.push_back(stream.next());
  return values;
}

/// The share of bits in which two streams agree.
double agreement(RandomStream a, RandomStream b) {
  constexpr int kDraws = 1000;
  int same = 0;
  for (int i = 0; i < kDraws; ++i) same += 64 - std::popcount(a.next() ^ b.next());
  return same / (64.0 * kDraws);
}

TEST(RandomStreamTest, EqualsTheDocumentedAlgorithm) {
  using Values = std::vector<uint64_t>;
  EXPECT_EQ(draws({0, RandomPurpose::shard_order, {}}),
            (Values{14172207040252959384u, 9947624440409071504u, 3088597458279837372u}));
  EXPECT_EQ(draws({42, RandomPurpose::crop, {7}}),
            (Values{15299638069520840815u, 15529617397448004423u, 12117283552648690921u}));
  EXPECT_EQ(draws({42, RandomPurpose::crop, {7, -1}}),
            (Values{4925796033169221216u, 10358571145250271623u, 12549570031745311658u}));
  EXPECT_EQ(draws({UINT64_MAX, RandomPurpose::scene, {1, 2, 3}}),
            (Values{3895068671488612840u, 1330695136691156175u, 17967357175753894762u}));
}

TEST(RandomStreamTest, DrawsUniformlyFromTheUnitInterval) {
  RandomStream known(42, RandomPurpose::crop, {7});
  EXPECT_EQ(known.uniform(), 0.8293950416608212);
  EXPECT_EQ(known.uniform(), 0.8418622460090905);

  RandomStream stream(1, RandomPurpose::crop, {});
  std::vector<int64_t> counts(100);
  for (int i = 0; i < 200'000; ++i) {
    const double value = stream.uniform();
    ASSERT_GE(value, 0.0);
    ASSERT_LT(value, 1.0);
    ++counts[static_cast<size_t>(value * 100)];
  }
  expect_uniform(counts);
}

TEST(RandomStreamTest, FirstDrawsOfConsecutiveCountersAreUniform) {
  std::vector<int64_t> counts(100);
  for (int64_t i = 0; i < 200'000; ++i) {
    ++counts[static_cast<size_t>(RandomStream(1, RandomPurpose::caption, {0, i}).below(100))];
  }
  expect_uniform(counts);
}

TEST(RandomStreamTest, DrawsIntegersBelowABound) {
  RandomStream known(42, RandomPurpose::caption, {0});
  for (const int64_t expected : {6, 5, 0, 6, 7, 4, 1, 8, 7, 3, 6, 8}) EXPECT_EQ(known.below(10), expected);
  for (const int64_t bound : {1, 2, 3, 7, 100, 1000}) {
    RandomStream stream(7, RandomPurpose::scene, {bound});
    std::vector<int64_t> counts(static_cast<size_t>(bound));
    for (int i = 0; i < 100'000; ++i) ++counts.at(static_cast<size_t>(stream.below(bound)));
    if (bound > 1) expect_uniform(counts);
  }
}

TEST(RandomStreamTest, RejectsDrawsThatWouldFavourSmallIntegers) {
  // 2^64 is 3 x (2^62 + 1) and a remainder of nearly a quarter: without rejection, values under 2^62 - 3 come up
  // 4 times in 4 and the others 3 times in 4. Drawing and rejecting leaves the golden sequence.
  constexpr int64_t kBound = (int64_t{1} << 62) + 1;
  RandomStream known(42, RandomPurpose::caption, {0});
  for (const int64_t expected : {2084931781040617256, 460729340297429615, 3374198979695711021, 3429581773134527662,
                                 1620648433492289674, 2653406472533080006}) {
    EXPECT_EQ(known.below(kBound), expected);
  }
  // Here 2^64 is 1.5 bounds: without rejection, the lower half would come up twice as often as the upper one.
  constexpr int64_t kTwoThirds = INT64_MAX / 3 * 2;
  RandomStream stream(3, RandomPurpose::scene, {});
  std::vector<int64_t> counts(8);
  for (int i = 0; i < 100'000; ++i) ++counts.at(static_cast<size_t>(stream.below(kTwoThirds) / (kTwoThirds / 8 + 1)));
  expect_uniform(counts);
}

TEST(RandomStreamTest, AskingForAnIntegerBelowNothingIsAnError) {
  RandomStream stream(1, RandomPurpose::scene, {});
  EXPECT_THROW(stream.below(0), Error);
  EXPECT_THROW(stream.below(-1), Error);
}

TEST(RandomStreamTest, StreamsThatDifferInOnePartOfTheKeyAreIndependent) {
  const RandomStream base(42, RandomPurpose::crop, {1, 2});
  EXPECT_EQ(agreement(base, {42, RandomPurpose::crop, {1, 2}}), 1.0);
  // Six standard deviations of the mean of 64000 fair bits.
  const double bound = 6 * 0.5 / std::sqrt(64'000.0);
  for (const auto& other :
       {RandomStream(43, RandomPurpose::crop, {1, 2}), RandomStream(42, RandomPurpose::caption, {1, 2}),
        RandomStream(42, RandomPurpose::crop, {2, 1}), RandomStream(42, RandomPurpose::crop, {1, 3}),
        RandomStream(42, RandomPurpose::crop, {1}), RandomStream(42, RandomPurpose::crop, {1, 2, 0})}) {
    EXPECT_NEAR(agreement(base, other), 0.5, bound);
  }
}

TEST(RandomStreamTest, KeysOfAWholeRunGiveDistinctStreams) {
  std::set<uint64_t> first_draws;
  int keys = 0;
  for (uint64_t seed = 0; seed < 5; ++seed) {
    for (int purpose = 1; purpose <= 7; ++purpose) {
      for (int64_t epoch = 0; epoch < 10; ++epoch) {
        for (int64_t sample = 0; sample < 100; ++sample, ++keys) {
          first_draws.insert(RandomStream(seed, static_cast<RandomPurpose>(purpose), {epoch, sample}).next());
        }
      }
    }
  }
  EXPECT_EQ(first_draws.size(), static_cast<size_t>(keys));
}

std::vector<int64_t> evaluate(const Permutation& permutation) {
  std::vector<int64_t> values;
  for (int64_t i = 0; i < permutation.size(); ++i) values.push_back(permutation(i));
  return values;
}

TEST(PermutationTest, EqualsTheDocumentedAlgorithm) {
  EXPECT_EQ(evaluate({5, 10}), (std::vector<int64_t>{7, 6, 4, 3, 8, 1, 0, 2, 5, 9}));
  const Permutation billion(5, 1'000'000'000);
  const std::vector<int64_t> expected{317527820, 922258823, 396516499, 428786316};
  for (int64_t i = 0; i < 4; ++i) EXPECT_EQ(billion(i), expected[static_cast<size_t>(i)]);
}

TEST(PermutationTest, IsABijectionForEverySize) {
  std::vector<int64_t> sizes;
  for (int64_t size = 1; size <= 300; ++size) sizes.push_back(size);
  for (const int64_t power : {1024, 4096, 65536, 1 << 18}) {
    for (const int64_t size : {power - 1, power, power + 1}) sizes.push_back(size);
  }
  for (const int64_t size : sizes) {
    const Permutation permutation(static_cast<uint64_t>(size) * 977, size);
    std::vector<bool> seen(static_cast<size_t>(size));
    for (int64_t i = 0; i < size; ++i) {
      const int64_t value = permutation(i);
      ASSERT_TRUE(value >= 0 && value < size) << value << " of size " << size;
      ASSERT_FALSE(seen[static_cast<size_t>(value)]) << value << " comes twice with size " << size;
      seen[static_cast<size_t>(value)] = true;
    }
  }
}

TEST(PermutationTest, ReachesTheLargestSize) {
  const Permutation permutation(UINT64_MAX, INT64_MAX);
  EXPECT_EQ(permutation(0), 3488868598689511025);
  EXPECT_EQ(permutation(1), 8611836183811049926);
  EXPECT_EQ(permutation(INT64_MAX - 1), 6674116716513288071);
}

TEST(PermutationTest, EveryPlaceIsEquallyLikelyOverKeys) {
  for (const int64_t size : {2, 3, 10, 64, 100}) {
    for (const int64_t index : {int64_t{0}, size - 1}) {
      std::vector<int64_t> counts(static_cast<size_t>(size));
      for (uint64_t key = 0; key < 50'000; ++key) ++counts[static_cast<size_t>(Permutation(key, size)(index))];
      SCOPED_TRACE(size);
      expect_uniform(counts);
    }
  }
}

TEST(PermutationTest, NeighboursAndKeysAreUnrelated) {
  // The distance between the images of neighbours, cut in equal parts, is uniform if they are unrelated.
  constexpr int64_t kSize = 10'007;
  const Permutation permutation(1, kSize);
  const Permutation next_key(2, kSize);
  std::vector<int64_t> steps(16);
  std::vector<int64_t> differences(16);
  for (int64_t i = 0; i + 1 < kSize; ++i) {
    ++steps[static_cast<size_t>((permutation(i + 1) - permutation(i) + kSize) % kSize * 16 / kSize)];
    ++differences[static_cast<size_t>((next_key(i) - permutation(i) + kSize) % kSize * 16 / kSize)];
  }
  expect_uniform(steps);
  expect_uniform(differences);
}

TEST(PermutationTest, PlacesOutsideAreErrors) {
  EXPECT_THROW(Permutation(1, 0), Error);
  EXPECT_THROW(Permutation(1, -5), Error);
  const Permutation permutation(1, 3);
  EXPECT_THROW(permutation(3), Error);
  EXPECT_THROW(permutation(-1), Error);
}

}  // namespace
}  // namespace contrastive
