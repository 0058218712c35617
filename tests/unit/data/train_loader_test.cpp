#include "contrastive/data/train_loader.h"

#include <atomic>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <ATen/Context.h>
#include <gtest/gtest.h>

#include "contrastive/core/error.h"
#include "contrastive/core/log.h"
#include "contrastive/data/sample_order.h"
#include "contrastive/data/synthetic.h"
#include "contrastive/text/clip_tokenizer.h"

#include "tests/support/paths.h"

namespace contrastive::data {
namespace {

constexpr uint64_t kSeed = 23;

/// Plain images whose colour is the sample's index, which no crop changes; some samples are bad.
class FakeSource : public SampleSource {
 public:
  explicit FakeSource(int64_t size) : size_(size) {}

  int64_t size() const override { return size_; }

  void read(int64_t index, RandomStream&, Sample& sample) const override {
    ++reads;
    if (index == broken_program) throw std::runtime_error("a bug, not bad data");
    if (unreadable.contains(index)) throw DataError("shard ends too early");
    if (read_errors.contains(index)) throw DataError(read_errors.at(index));
    sample.caption = captions.contains(index) ? captions.at(index) : "number " + std::to_string(index);
    if (files.contains(index)) {
      sample.encoded = files.at(index);
      return;
    }
    sample.drawn = {.width = 6, .height = 5, .mode = image::PixelMode::rgb, .pixels = {}, .palette = {}};
    for (int i = 0; i < 6 * 5; ++i) {
      for (const int64_t value : {index % 256, index / 256, int64_t{7}}) {
        sample.drawn.pixels.push_back(static_cast<uint8_t>(value));
      }
    }
  }

  std::string describe(int64_t index) const override { return "[fake.tar] sample " + std::to_string(index); }
  std::string fingerprint() const override { return "fake"; }

  std::set<int64_t> unreadable;
  std::map<int64_t, std::string> read_errors;
  std::map<int64_t, std::string> captions;
  std::map<int64_t, std::vector<uint8_t>> files;
  int64_t broken_program = -1;
  mutable std::atomic<int64_t> reads{0};

 private:
  int64_t size_;
};

std::shared_ptr<const text::ClipTokenizer> tokenizer() {
  static const auto shared = std::make_shared<const text::ClipTokenizer>(test::merges_file());
  return shared;
}

TrainLoaderOptions small_options(int64_t batch_size = 4) {
  TrainLoaderOptions options;
  options.batch_size = batch_size;
  options.image_size = 8;
  options.seed = kSeed;
  return options;
}

std::vector<uint8_t> bytes_of(const torch::Tensor& images) {
  const auto* data = images.data_ptr<uint8_t>();
  return {data, data + images.numel()};
}

/// The ids of a row up to and including the end marker.
std::vector<int64_t> ids_of(const torch::Tensor& tokens, int64_t row) {
  const auto* data = tokens.data_ptr<int64_t>() + row * tokens.size(1);
  std::vector<int64_t> ids(data, data + tokens.size(1));
  while (!ids.empty() && ids.back() == 0) ids.pop_back();
  return ids;
}

/// Which samples of a FakeSource a batch shows.
std::vector<int64_t> indices_of(const Batch& batch) {
  std::vector<int64_t> indices;
  const int64_t image_bytes = batch.images.size(1) * batch.images.size(2) * 3;
  for (int64_t item = 0; item < batch.images.size(0); ++item) {
    const auto* pixel = batch.images.data_ptr<uint8_t>() + item * image_bytes;
    EXPECT_EQ(pixel[2], 7);
    indices.push_back(pixel[0] + 256 * pixel[1]);
  }
  return indices;
}

std::vector<int64_t> expected_indices(int64_t size, int64_t begin, int64_t end) {
  const SampleOrder order(kSeed, size);
  std::vector<int64_t> indices;
  for (int64_t position = begin; position < end; ++position) {
    indices.push_back(order.at(position / size, position % size));
  }
  return indices;
}

template <typename ErrorType>
std::string error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const ErrorType& error) {
    return error.what();
  }
  return "no error";
}

/// The log's messages while it lives.
class LogCapture {
 public:
  LogCapture() {
    set_log_sink([this](LogLevel, std::string_view message) { messages.emplace_back(message); });
  }
  ~LogCapture() { set_log_sink({}); }

  std::vector<std::string> messages;
};

void expect_same(const Batch& actual, const Batch& expected, const std::string& where) {
  EXPECT_TRUE(actual.images.sizes() == expected.images.sizes()) << where;
  EXPECT_EQ(bytes_of(actual.images), bytes_of(expected.images)) << where;
  ASSERT_TRUE(actual.tokens.sizes() == expected.tokens.sizes()) << where;
  for (int64_t row = 0; row < actual.tokens.size(0); ++row) {
    EXPECT_EQ(ids_of(actual.tokens, row), ids_of(expected.tokens, row)) << where << ", row " << row;
  }
}

TEST(TrainLoaderTest, TakesTheSampleOrderThroughTheEpochs) {
  TrainLoader loader(std::make_shared<FakeSource>(10), tokenizer(), small_options(4));
  for (int64_t step = 0; step < 8; ++step) {
    EXPECT_EQ(loader.step(), step);
    EXPECT_EQ(indices_of(loader.next()), expected_indices(10, step * 4, step * 4 + 4)) << "step " << step;
  }
}

TEST(TrainLoaderTest, ABatchMayBeLargerThanTheSet) {
  TrainLoader loader(std::make_shared<FakeSource>(3), tokenizer(), small_options(8));
  EXPECT_EQ(indices_of(loader.next()), expected_indices(3, 0, 8));
}

TEST(TrainLoaderTest, GivesBytesAndTokensOfTheLongestCaption) {
  auto source = std::make_shared<FakeSource>(4);
  source->captions = {{0, "cat"}, {1, "a cat on a mat"}, {2, "dog"}, {3, "two dogs"}};
  TrainLoader loader(source, tokenizer(), small_options(4));
  const auto batch = loader.next();
  EXPECT_EQ(batch.images.scalar_type(), at::kByte);
  EXPECT_EQ(batch.images.sizes(), (std::vector<int64_t>{4, 8, 8, 3}));
  EXPECT_EQ(batch.tokens.scalar_type(), at::kLong);
  EXPECT_EQ(batch.tokens.sizes(), (std::vector<int64_t>{4, 7}));  // five words, start and end
  const auto indices = indices_of(batch);
  for (int64_t row = 0; row < 4; ++row) {
    std::vector<int64_t> expected{text::ClipTokenizer::kStartOfText};
    for (const int32_t id : tokenizer()->encode(source->captions.at(indices[static_cast<size_t>(row)]))) {
      expected.push_back(id);
    }
    expected.push_back(text::ClipTokenizer::kEndOfText);
    EXPECT_EQ(ids_of(batch.tokens, row), expected) << "row " << row;
  }
}

TEST(TrainLoaderTest, CutsCaptionsAtTheContextLength) {
  auto source = std::make_shared<FakeSource>(1);
  source->captions = {{0, "one two three four five six seven eight nine ten"}};
  auto options = small_options(1);
  options.context_length = 5;
  TrainLoader loader(source, tokenizer(), options);
  const auto ids = ids_of(loader.next().tokens, 0);
  EXPECT_EQ(ids.size(), 5U);
  EXPECT_EQ(ids.front(), text::ClipTokenizer::kStartOfText);
  EXPECT_EQ(ids.back(), text::ClipTokenizer::kEndOfText);
}

TEST(TrainLoaderTest, BatchesDoNotDependOnThreadsPrefetchingOrStart) {
  const auto source = std::make_shared<SyntheticSource>(SyntheticOptions{.samples = 50, .image_size = 24});
  auto options = small_options(12);
  options.image_size = 16;
  options.crop.scale_min = 0.3;
  std::vector<Batch> expected;
  options.workers = 1;
  TrainLoader reference(source, tokenizer(), options);
  for (int64_t step = 0; step < 9; ++step) expected.push_back(reference.next());

  for (const int64_t workers : {1, 2, 5}) {
    for (const int64_t prefetch : {0, 1, 3}) {
      for (const int64_t first_step : {0, 4}) {
        options.workers = workers;
        options.prefetch_batches = prefetch;
        options.first_step = first_step;
        TrainLoader loader(source, tokenizer(), options);
        for (int64_t step = first_step; step < 9; ++step) {
          expect_same(loader.next(), expected[static_cast<size_t>(step)],
                      std::to_string(workers) + " workers, " + std::to_string(prefetch) + " ahead, from step " +
                          std::to_string(first_step) + ", step " + std::to_string(step));
        }
      }
    }
  }
}

TEST(TrainLoaderTest, DrawsAnotherCropInEachEpoch) {
  const auto source = std::make_shared<SyntheticSource>(SyntheticOptions{.samples = 1, .image_size = 24});
  auto options = small_options(1);
  options.crop.scale_min = 0.3;
  TrainLoader loader(source, tokenizer(), options);
  std::set<std::vector<uint8_t>> crops;
  for (int64_t epoch = 0; epoch < 6; ++epoch) crops.insert(bytes_of(loader.next().images));
  EXPECT_EQ(crops.size(), 6U);
}

TEST(TrainLoaderTest, TheRanksTogetherMakeTheBatchOfOne) {
  const auto source = std::make_shared<SyntheticSource>(SyntheticOptions{.samples = 30, .image_size = 24});
  auto options = small_options(12);
  TrainLoader single(source, tokenizer(), options);
  std::vector<Batch> expected;
  for (int64_t step = 0; step < 4; ++step) expected.push_back(single.next());

  for (const int64_t world_size : {2, 3, 4, 12}) {
    options.world_size = world_size;
    for (options.rank = 0; options.rank < world_size; ++options.rank) {
      TrainLoader loader(source, tokenizer(), options);
      const int64_t items = 12 / world_size;
      for (const auto& whole : expected) {
        const auto part = loader.next();
        ASSERT_EQ(part.images.size(0), items);
        EXPECT_EQ(bytes_of(part.images), bytes_of(whole.images.narrow(0, options.rank * items, items)));
        for (int64_t row = 0; row < items; ++row) {
          EXPECT_EQ(ids_of(part.tokens, row), ids_of(whole.tokens, options.rank * items + row));
        }
      }
    }
  }
}

TEST(TrainLoaderTest, ABatchThatIsKeptIsNotWrittenOver) {
  TrainLoader loader(std::make_shared<FakeSource>(500), tokenizer(), small_options(20));
  std::vector<Batch> kept;
  for (int64_t step = 0; step < 20; ++step) kept.push_back(loader.next());
  for (int64_t step = 0; step < 20; ++step) {
    EXPECT_EQ(indices_of(kept[static_cast<size_t>(step)]), expected_indices(500, step * 20, step * 20 + 20));
  }
}

TEST(TrainLoaderTest, ABatchOutlivesTheLoader) {
  Batch batch;
  {
    TrainLoader loader(std::make_shared<FakeSource>(10), tokenizer(), small_options(4));
    batch = loader.next();
  }
  EXPECT_EQ(indices_of(batch), expected_indices(10, 0, 4));
}

TEST(TrainLoaderTest, FailsWithTheNameOfTheFirstBadSample) {
  const auto order = expected_indices(40, 0, 40);
  for (const int64_t prefetch : {0, 3}) {
    for (const int64_t workers : {1, 4}) {
      auto source = std::make_shared<FakeSource>(40);
      source->unreadable = {order[17], order[18], order[19], order[31]};
      auto options = small_options(10);
      options.prefetch_batches = prefetch;
      options.workers = workers;
      TrainLoader loader(source, tokenizer(), options);
      EXPECT_EQ(indices_of(loader.next()), expected_indices(40, 0, 10));
      const std::string expected = "[fake.tar] sample " + std::to_string(order[17]) + ": shard ends too early";
      EXPECT_EQ(error_of<DataError>([&] { loader.next(); }), expected);
      EXPECT_EQ(error_of<DataError>([&] { loader.next(); }), expected) << "the second time";
      EXPECT_EQ(loader.step(), 1);
    }
  }
}

TEST(TrainLoaderTest, NamesWhatIsWrongWithASample) {
  const auto message_of = [](const std::function<void(FakeSource&)>& spoil) {
    auto source = std::make_shared<FakeSource>(1);
    spoil(*source);
    TrainLoader loader(source, tokenizer(), small_options(1));
    return error_of<DataError>([&] { loader.next(); });
  };
  EXPECT_EQ(message_of([](FakeSource& source) { source.captions[0] = ""; }), "[fake.tar] sample 0: caption is missing");
  EXPECT_EQ(message_of([](FakeSource& source) { source.captions[0] = " \n"; }),
            "[fake.tar] sample 0: caption is empty: white space only");
  EXPECT_EQ(message_of([](FakeSource& source) { source.files[0] = {}; }).find("[fake.tar] sample 0: image: "), 0U);
}

/// A JPEG of noise, cut to a share of its length.
std::vector<uint8_t> cut_jpeg(double share) {
  image::Image picture{.width = 64, .height = 64, .mode = image::PixelMode::rgb, .pixels = {}, .palette = {}};
  RandomStream random(1, RandomPurpose::scene, {0});
  for (int i = 0; i < 64 * 64 * 3; ++i) picture.pixels.push_back(static_cast<uint8_t>(random.below(256)));
  auto file = image::encode_jpeg(picture, 90);
  file.resize(static_cast<size_t>(share * static_cast<double>(file.size())));
  return file;
}

TEST(TrainLoaderTest, SkippingPutsOtherSamplesInPlaceAndCountsByReason) {
  const LogCapture log;
  auto source = std::make_shared<FakeSource>(200);
  source->unreadable = {3, 4, 5};
  source->captions = {{10, ""}, {11, "\t "}, {12, ""}};
  source->files = {{20, cut_jpeg(0.5)}, {21, {'n', 'o', ' ', 'i', 'm', 'a', 'g', 'e'}}, {22, cut_jpeg(0.3)}};
  auto options = small_options(50);
  options.on_bad_sample = BadSamplePolicy::skip;
  TrainLoader loader(source, tokenizer(), options);
  const std::set<int64_t> bad{3, 4, 5, 10, 11, 12, 20, 21, 22};
  for (int64_t step = 0; step < 4; ++step) {
    const auto batch = loader.next();
    const auto indices = indices_of(batch);
    const auto expected = expected_indices(200, step * 50, step * 50 + 50);
    for (size_t i = 0; i < 50; ++i) {
      EXPECT_FALSE(bad.contains(indices[i]));
      if (!bad.contains(expected[i])) {
        EXPECT_EQ(indices[i], expected[i]);
      }
      const auto ids = tokenizer()->encode("number " + std::to_string(indices[i]));
      EXPECT_EQ(ids_of(batch.tokens, static_cast<int64_t>(i)).size(), ids.size() + 2) << "the substitute's own caption";
    }
  }
  const auto report = loader.bad_samples();
  EXPECT_EQ(report.total, 9);
  EXPECT_EQ(report.by_reason, (std::map<std::string, int64_t>{{"unreadable sample", 3},
                                                              {"caption missing", 2},
                                                              {"caption empty", 1},
                                                              {"truncated image", 2},
                                                              {"undecodable image", 1}}));
  EXPECT_EQ(log.messages.size(), 5U) << "the first of each reason";
}

TEST(TrainLoaderTest, SkippingLogsTheFirstOfEachReasonWithItsName) {
  const LogCapture log;
  auto source = std::make_shared<FakeSource>(100);
  const auto order = expected_indices(100, 0, 100);
  source->unreadable = {order[2], order[7]};
  source->captions = {{order[5], ""}};
  auto options = small_options(10);
  options.on_bad_sample = BadSamplePolicy::skip;
  options.max_bad_samples = 1203;
  TrainLoader loader(source, tokenizer(), options);
  loader.next();
  ASSERT_EQ(log.messages.size(), 2U);
  EXPECT_EQ(log.messages[0],
            "[fake.tar] sample " + std::to_string(order[2]) + ": shard ends too early; skipped (1 of at most 1,203)");
  EXPECT_EQ(log.messages[1],
            "[fake.tar] sample " + std::to_string(order[5]) + ": caption is missing; skipped (2 of at most 1,203)");
}

TEST(TrainLoaderTest, ErrorsOfTheSourceAreCountedByWhatTheySpeakOf) {
  const LogCapture log;
  auto source = std::make_shared<FakeSource>(20);
  source->read_errors = {{0, "no caption: expected a member .txt; the sample has .jpg"},
                         {1, "the caption is empty"},
                         {2, "the caption is not UTF-8: wrong byte at 3"},
                         {3, "no image: expected a member .jpg or .png; the sample has .txt"},
                         {4, "the shard changed since it was indexed: it had 3 bytes, now 2"}};
  auto options = small_options(20);
  options.on_bad_sample = BadSamplePolicy::skip;
  TrainLoader loader(source, tokenizer(), options);
  loader.next();
  EXPECT_EQ(loader.bad_samples().by_reason, (std::map<std::string, int64_t>{{"caption missing", 1},
                                                                            {"caption empty", 1},
                                                                            {"caption malformed", 1},
                                                                            {"image missing", 1},
                                                                            {"unreadable sample", 1}}));
}

TEST(TrainLoaderTest, SkippingDoesNotDependOnThreadsPrefetchingOrStart) {
  const LogCapture log;
  auto source = std::make_shared<FakeSource>(60);
  for (int64_t index = 0; index < 60; index += 2) source->unreadable.insert(index);
  auto options = small_options(16);
  options.on_bad_sample = BadSamplePolicy::skip;
  options.workers = 1;
  TrainLoader reference(source, tokenizer(), options);
  std::vector<std::vector<int64_t>> expected;
  std::vector<int64_t> totals;
  for (int64_t step = 0; step < 8; ++step) {
    expected.push_back(indices_of(reference.next()));
    totals.push_back(reference.bad_samples().total);
  }
  for (const int64_t workers : {1, 3}) {
    for (const int64_t prefetch : {0, 4}) {
      options.workers = workers;
      options.prefetch_batches = prefetch;
      options.first_step = 0;
      TrainLoader loader(source, tokenizer(), options);
      for (size_t step = 0; step < 8; ++step) {
        EXPECT_EQ(indices_of(loader.next()), expected[step]);
        EXPECT_EQ(loader.bad_samples().total, totals[step]) << "the report covers the batches returned";
      }
      options.first_step = 5;
      TrainLoader later(source, tokenizer(), options);
      for (size_t step = 5; step < 8; ++step) EXPECT_EQ(indices_of(later.next()), expected[step]);
    }
  }
}

TEST(TrainLoaderTest, ABadSampleIsCountedOnceHoweverOftenItComesUp) {
  const LogCapture log;
  auto source = std::make_shared<FakeSource>(10);
  source->unreadable = {6};
  auto options = small_options(10);
  options.on_bad_sample = BadSamplePolicy::skip;
  options.max_bad_samples = 1;
  TrainLoader loader(source, tokenizer(), options);
  for (int64_t epoch = 0; epoch < 20; ++epoch) loader.next();
  EXPECT_EQ(loader.bad_samples().total, 1);
}

TEST(TrainLoaderTest, StopsAtTheLimitOfBadSamples) {
  for (const int64_t prefetch : {0, 2}) {
    const LogCapture log;
    auto source = std::make_shared<FakeSource>(1000);
    const auto order = expected_indices(1000, 0, 1000);
    for (const size_t position : {1, 12, 13, 25}) source->unreadable.insert(order[position]);
    auto options = small_options(10);
    options.on_bad_sample = BadSamplePolicy::skip;
    options.max_bad_samples = 3;
    options.prefetch_batches = prefetch;
    TrainLoader loader(source, tokenizer(), options);
    loader.next();
    loader.next();
    const std::string expected = "[fake.tar] sample " + std::to_string(order[25]) +
                                 ": shard ends too early; at most 3 bad samples may be skipped (max_bad_samples)";
    EXPECT_EQ(error_of<DataError>([&] { loader.next(); }), expected);
    EXPECT_EQ(error_of<DataError>([&] { loader.next(); }), expected) << "the second time";
    EXPECT_EQ(loader.bad_samples().total, 3);
    EXPECT_EQ(log.messages.size(), 1U) << "what is thrown is not logged too";
  }
}

TEST(TrainLoaderTest, ASetWithoutAGoodSampleIsAnErrorNotAHang) {
  const LogCapture log;
  auto source = std::make_shared<FakeSource>(5);
  source->unreadable = {0, 1, 2, 3, 4};
  auto options = small_options(4);
  options.on_bad_sample = BadSamplePolicy::skip;
  TrainLoader loader(source, tokenizer(), options);
  const auto message = error_of<DataError>([&] { loader.next(); });
  EXPECT_NE(message.find(": shard ends too early; 100 other samples tried before it in its place are bad too"),
            message.npos)
      << message;
}

TEST(TrainLoaderTest, OnlyBadDataIsSkipped) {
  auto source = std::make_shared<FakeSource>(10);
  source->broken_program = 4;
  auto options = small_options(10);
  options.on_bad_sample = BadSamplePolicy::skip;
  for (const int64_t prefetch : {0, 2}) {
    options.prefetch_batches = prefetch;
    TrainLoader loader(source, tokenizer(), options);
    EXPECT_EQ(error_of<std::runtime_error>([&] { loader.next(); }), "a bug, not bad data");
  }
}

TEST(TrainLoaderTest, DecodesNothingInTheBackgroundUnlessAskedTo) {
  auto source = std::make_shared<FakeSource>(100);
  TrainLoader loader(source, tokenizer(), small_options(10));
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_EQ(source->reads, 0);
  loader.next();
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_EQ(source->reads, 10);
  EXPECT_GT(loader.last_wait_ms(), 0);
}

TEST(TrainLoaderTest, StopsWhileTheRingIsFull) {
  auto source = std::make_shared<FakeSource>(100);
  auto options = small_options(10);
  options.prefetch_batches = 3;
  {
    TrainLoader loader(source, tokenizer(), options);
    while (source->reads < 30) std::this_thread::yield();
  }
  EXPECT_EQ(source->reads, 30);
}

TEST(TrainLoaderTest, RejectsOptionsOutOfRange) {
  const auto message_of = [](const std::function<void(TrainLoaderOptions&)>& change) {
    auto options = small_options(6);
    change(options);
    return error_of<ConfigError>([&] { TrainLoader(std::make_shared<FakeSource>(5), tokenizer(), options); });
  };
  EXPECT_EQ(message_of([](auto& options) { options.batch_size = 0; }),
            "[train_loader] batch_size must be in [1, 16777216], but is 0");
  EXPECT_EQ(message_of([](auto& options) { options.world_size = 4; }),
            "[train_loader] batch_size must be a multiple of world_size (4), but is 6");
  EXPECT_EQ(message_of([](auto& options) { options.rank = 1; }), "[train_loader] rank must be in [0, 0], but is 1");
  EXPECT_EQ(message_of([](auto& options) { options.workers = 0; }),
            "[train_loader] workers must be in [1, 1024], but is 0");
  EXPECT_EQ(message_of([](auto& options) { options.prefetch_batches = -1; }),
            "[train_loader] prefetch_batches must be in [0, 1024], but is -1");
  EXPECT_EQ(message_of([](auto& options) { options.context_length = 1; }),
            "[train_loader] context_length must be in [2, 65536], but is 1");
  EXPECT_EQ(message_of([](auto& options) { options.image_size = 0; }),
            "[train_loader] image_size must be in [1, 8192], but is 0");
  EXPECT_EQ(message_of([](auto& options) { options.first_step = -3; }).find("[train_loader] first_step"), 0U);
  EXPECT_EQ(message_of([](auto& options) { options.max_bad_samples = -3; }).find("[train_loader] max_bad_samples"), 0U);
  if (at::hasCUDA()) return;
  EXPECT_EQ(message_of([](auto& options) { options.pin_memory = true; }),
            "[train_loader] pin_memory needs a CUDA device, but there is none");
}

TEST(TrainLoaderTest, RejectsAnEmptySet) {
  EXPECT_EQ(error_of<DataError>([] { TrainLoader(std::make_shared<FakeSource>(0), tokenizer(), small_options()); }),
            "[train_loader] the training set has no samples");
}

}  // namespace
}  // namespace contrastive::data
