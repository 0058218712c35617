#include "contrastive/eval/feature_cache.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <unistd.h>

#include "contrastive/core/error.h"
#include "contrastive/core/file.h"

#include "tests/support/errors.h"
#include "tests/support/paths.h"

namespace contrastive::eval {
namespace {

namespace fs = std::filesystem;

using Ranges = std::vector<std::pair<int64_t, int64_t>>;

FeatureCacheOptions options_in(const fs::path& folder) {
  return {.folder = folder, .settings = {{"model", "a"}, {"stage", "tower"}}, .num_samples = 10, .samples_per_part = 4};
}

/// Sample i has the features (i, -i) and the label 10 i; those of `left_out` are left out.
LabelledFeatures samples(int64_t begin, int64_t end, const std::vector<int64_t>& left_out = {}) {
  std::vector<int64_t> kept;
  for (auto i = begin; i < end; ++i) {
    if (std::find(left_out.begin(), left_out.end(), i) == left_out.end()) kept.push_back(i);
  }
  const auto numbers = at::tensor(kept, at::kLong);
  return {at::stack({numbers, -numbers}, 1).to(at::kFloat), numbers * 10};
}

void expect_equal(const LabelledFeatures& found, const LabelledFeatures& expected) {
  EXPECT_TRUE(at::equal(found.features, expected.features));
  EXPECT_TRUE(at::equal(found.labels, expected.labels));
}

TEST(FeatureCacheTest, AsksForEveryPartOnceAndForNoneTheNextTime) {
  const test::TemporaryDirectory folder;
  const auto options = options_in(folder.path() / "a" / "b");
  Ranges asked;
  const FeatureProducer produce = [&](int64_t begin, int64_t end) {
    asked.emplace_back(begin, end);
    return samples(begin, end);
  };
  expect_equal(cached_features(options, produce), samples(0, 10));
  EXPECT_EQ(asked, (Ranges{{0, 4}, {4, 8}, {8, 10}}));
  expect_equal(cached_features(options, produce), samples(0, 10));
  EXPECT_EQ(asked.size(), 3U);
}

TEST(FeatureCacheTest, GoesOnAfterTheLastPartThatWasWritten) {
  const test::TemporaryDirectory folder, straight;
  const auto options = options_in(folder.path());
  for (const int64_t failing : {4, 4, 8}) {
    EXPECT_EQ(test::message_of([&] {
                cached_features(options, [&](int64_t begin, int64_t end) {
                  if (begin == failing) throw DataError("cut off");
                  return samples(begin, end);
                });
              }),
              "cut off");
  }
  Ranges asked;
  const auto found = cached_features(options, [&](int64_t begin, int64_t end) {
    asked.emplace_back(begin, end);
    return samples(begin, end);
  });
  EXPECT_EQ(asked, (Ranges{{8, 10}}));
  expect_equal(found, samples(0, 10));
  cached_features(options_in(straight.path()), [](int64_t begin, int64_t end) { return samples(begin, end); });
  const auto name = feature_cache_file(options).filename();
  EXPECT_EQ(read_text_file(folder.path() / name), read_text_file(straight.path() / name));
}

TEST(FeatureCacheTest, SamplesMayBeLeftOutEvenAWholePart) {
  const test::TemporaryDirectory folder;
  const std::vector<int64_t> left_out{1, 4, 5, 6, 7, 9};
  const auto produce = [&](int64_t begin, int64_t end) {
    auto found = samples(begin, end, left_out);
    found.features = found.features.view({-1, 2});
    return found;
  };
  expect_equal(cached_features(options_in(folder.path()), produce), samples(0, 10, left_out));

  auto options = options_in(folder.path());
  options.settings["model"] = "b";
  EXPECT_NE(test::message_of<DataError>([&] {
              cached_features(options, [](int64_t, int64_t) {
                return LabelledFeatures{at::empty({0, 2}), at::empty({0}, at::kLong)};
              });
            }).find("all samples were left out"),
            std::string::npos);
}

TEST(FeatureCacheTest, FilesOfSeveralSettingsLieSideBySide) {
  const test::TemporaryDirectory folder;
  const auto produce = [](int64_t begin, int64_t end) { return samples(begin, end); };
  const auto options = options_in(folder.path());
  cached_features(options, produce);
  auto other = options;
  other.settings["stage"] = "embedding";
  EXPECT_NE(feature_cache_file(options), feature_cache_file(other));
  bool was_asked = false;
  cached_features(other, [&](int64_t begin, int64_t end) {
    was_asked = true;
    return samples(begin, end);
  });
  EXPECT_TRUE(was_asked);

  fs::copy_file(feature_cache_file(options), feature_cache_file(other), fs::copy_options::overwrite_existing);
  EXPECT_EQ(test::message_of<ConfigError>([&] { cached_features(other, produce); }),
            "[" + feature_cache_file(other).string() +
                "] was made with other settings: stage: tower, now embedding; remove it or choose another place");
}

TEST(FeatureCacheTest, RefusesAFileThatAnotherProcessIsWriting) {
  const test::TemporaryDirectory folder;
  const auto options = options_in(folder.path());
  auto lock = feature_cache_file(options);
  lock.replace_extension(".lock");
  const int descriptor = ::open(lock.c_str(), O_RDWR | O_CREAT, 0644);
  ASSERT_EQ(::flock(descriptor, LOCK_EX), 0);
  const auto produce = [](int64_t begin, int64_t end) { return samples(begin, end); };
  EXPECT_EQ(test::message_of<ConfigError>([&] { cached_features(options, produce); }),
            "[" + feature_cache_file(options).string() + "] is being written by another process");
  ::close(descriptor);
  cached_features(options, produce);
}

TEST(FeatureCacheTest, RefusesDamagedLabels) {
  const test::TemporaryDirectory folder;
  const auto options = options_in(folder.path());
  const auto produce = [](int64_t begin, int64_t end) { return samples(begin, end); };
  cached_features(options, produce);
  auto file = feature_cache_file(options);
  file.replace_extension(".labels.txt");
  const auto text = read_text_file(file);
  const auto message_with = [&](const std::string& content) {
    std::ofstream(file) << content;
    return test::message_of<CheckpointError>([&] { cached_features(options, produce); });
  };
  EXPECT_EQ(message_with("0\nten\n"), "[" + file.string() + "] line 2 must be a label");
  EXPECT_EQ(message_with("0\n10\n"), "[" + file.string() + "] line 3 must be a label");
  EXPECT_EQ(message_with(text + "7\n"), "[" + file.string() + "] must have 10 lines, but has more");
}

}  // namespace
}  // namespace contrastive::eval
