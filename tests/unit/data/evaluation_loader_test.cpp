#include "contrastive/data/evaluation_loader.h"

#include <algorithm>
#include <functional>
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "contrastive/core/error.h"
#include "contrastive/data/synthetic.h"

namespace contrastive::data {
namespace {

/// Pictures of one colour, which is the index; sample i has label 100 + i.
class FakeSource : public SampleSource {
 public:
  explicit FakeSource(int64_t size) : size_(size) {}

  int64_t size() const override { return size_; }

  void read(int64_t index, RandomStream&, Sample& sample) const override {
    if (unreadable.contains(index)) throw DataError("member .jpg ends after 10 of 20 bytes");
    if (labelled) sample.label = 100 + index;
    if (undecodable.contains(index)) {
      sample.encoded = {'G', 'I', 'F', '8'};
      return;
    }
    sample.drawn = {.width = 5, .height = 7, .mode = image::PixelMode::rgb, .pixels = {}, .palette = {}};
    sample.drawn.pixels.assign(5 * 7 * 3, static_cast<uint8_t>(index));
  }

  std::string describe(int64_t index) const override { return "[test/0.tar] sample " + std::to_string(index); }
  std::string fingerprint() const override { return "fake"; }

  std::set<int64_t> unreadable;
  std::set<int64_t> undecodable;
  bool labelled = true;

 private:
  int64_t size_;
};

image::PreprocessSpec spec_of(int64_t size) {
  image::PreprocessSpec spec;
  spec.size = size;
  return spec;
}

std::string error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(EvaluationLoaderTest, GivesEverySampleOnceInOrder) {
  for (const int64_t size : {0, 1, 6, 7, 12, 13}) {
    for (const int64_t workers : {1, 3}) {
      const FakeSource source(size);
      EvaluationLoader loader(source, spec_of(4), /*batch_size=*/6, workers);
      int64_t seen = 0;
      while (const auto batch = loader.next()) {
        const int64_t items = std::min<int64_t>(6, size - seen);
        ASSERT_EQ(batch->images.sizes(), (std::vector<int64_t>{items, 4, 4, 3}));
        ASSERT_EQ(batch->labels.sizes(), (std::vector<int64_t>{items}));
        EXPECT_EQ(batch->images.scalar_type(), at::kByte);
        EXPECT_EQ(batch->labels.scalar_type(), at::kLong);
        for (int64_t item = 0; item < items; ++item, ++seen) {
          EXPECT_EQ(batch->labels.data_ptr<int64_t>()[item], 100 + seen);
          const auto* pixels = batch->images.data_ptr<uint8_t>() + item * 48;
          EXPECT_EQ(std::vector<uint8_t>(pixels, pixels + 48), std::vector<uint8_t>(48, static_cast<uint8_t>(seen)));
        }
      }
      EXPECT_EQ(seen, size);
      EXPECT_FALSE(loader.next().has_value()) << "stays at the end";
    }
  }
}

TEST(EvaluationLoaderTest, ConvertsToRgbBeforeResizing) {
  // Left half opaque black, right half transparent white. Resized with its alpha, white would count for nothing.
  class TransparentSource : public FakeSource {
   public:
    TransparentSource() : FakeSource(1) {}
    void read(int64_t, RandomStream&, Sample& sample) const override {
      sample.drawn = {.width = 4, .height = 4, .mode = image::PixelMode::rgba, .pixels = {}, .palette = {}};
      for (int i = 0; i < 16; ++i) {
        const auto value = static_cast<uint8_t>(i % 4 < 2 ? 0 : 255);
        sample.drawn.pixels.insert(sample.drawn.pixels.end(), {value, value, value, static_cast<uint8_t>(255 - value)});
      }
    }
  };
  const TransparentSource source;
  image::PreprocessSpec spec = spec_of(1);
  spec.interpolation = image::Interpolation::bilinear;
  EvaluationLoader loader(source, spec, 1, 1);
  EXPECT_NEAR(loader.next()->images.data_ptr<uint8_t>()[0], 128, 1);
}

TEST(EvaluationLoaderTest, DoesNotDependOnBatchSizeAndThreads) {
  const auto set = synthetic_classification({.samples = 40, .image_size = 40});
  const auto all_bytes = [&](int64_t batch_size, int64_t workers) {
    std::vector<uint8_t> bytes;
    EvaluationLoader loader(*set.source, spec_of(32), batch_size, workers);
    while (const auto batch = loader.next()) {
      const auto* data = batch->images.data_ptr<uint8_t>();
      bytes.insert(bytes.end(), data, data + batch->images.numel());
    }
    return bytes;
  };
  const auto expected = all_bytes(1, 1);
  EXPECT_EQ(expected.size(), 40U * 32 * 32 * 3);
  EXPECT_EQ(all_bytes(7, 3), expected);
  EXPECT_EQ(all_bytes(100, 2), expected);
}

TEST(EvaluationLoaderTest, NamesTheFirstBadSampleAndSkipsNone) {
  FakeSource source(30);
  source.unreadable = {14, 19};
  source.undecodable = {25};
  EvaluationLoader loader(source, spec_of(4), 10, 4);
  EXPECT_TRUE(loader.next().has_value());
  const std::string expected = "[test/0.tar] sample 14: member .jpg ends after 10 of 20 bytes";
  EXPECT_EQ(error_of([&] { loader.next(); }), expected);
  EXPECT_EQ(error_of([&] { loader.next(); }), expected) << "the second time";

  FakeSource other(30);
  other.undecodable = {25};
  EvaluationLoader second(other, spec_of(4), 30, 2);
  EXPECT_EQ(error_of([&] { second.next(); }).find("[test/0.tar] sample 25: image: "), 0U);
}

TEST(EvaluationLoaderTest, GivesMinusOneWhereThereIsNoLabel) {
  FakeSource source(3);
  source.labelled = false;
  EvaluationLoader loader(source, spec_of(4), 3, 2);
  const auto batch = loader.next();
  for (int64_t item = 0; item < 3; ++item) EXPECT_EQ(batch->labels.data_ptr<int64_t>()[item], -1);
}

TEST(EvaluationLoaderTest, RejectsOptionsOutOfRange) {
  const FakeSource source(3);
  EXPECT_EQ(error_of([&] { EvaluationLoader(source, spec_of(4), 0, 1); }),
            "[evaluation_loader] batch_size must be in [1, 16777216], but is 0");
  EXPECT_EQ(error_of([&] { EvaluationLoader(source, spec_of(4), 1, 0); }),
            "[evaluation_loader] workers must be in [1, 1024], but is 0");
  EXPECT_EQ(error_of([&] { EvaluationLoader(source, spec_of(0), 1, 1); }),
            "[evaluation_loader] image size must be in [1, 8192], but is 0");
}

}  // namespace
}  // namespace contrastive::data
