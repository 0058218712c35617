#include "contrastive/data/embedding_cache.h"

#include <algorithm>
#include <filesystem>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "contrastive/core/error.h"
#include "contrastive/core/file.h"
#include "contrastive/core/safetensors.h"
#include "contrastive/data/embedding_cache_loader.h"
#include "contrastive/data/sample_order.h"
#include "contrastive/data/train_loader.h"
#include "contrastive/data/webdataset_source.h"
#include "contrastive/text/clip_tokenizer.h"

#include "tests/support/paths.h"
#include "tests/support/tensors.h"
#include "tests/unit/data/shard_test_support.h"

namespace contrastive::data {
namespace {

namespace fs = std::filesystem;

/// The message of the error that an action throws, or "no error".
template <typename Expected = Error, typename Action>
std::string error_of(const Action& action) {
  try {
    action();
  } catch (const Expected& error) {
    return error.what();
  }
  return "no error";
}

constexpr uint64_t kSeed = 5;
constexpr int64_t kContext = 12;
constexpr int64_t kSide = 4;

/// Drawn images of one colour, so that any preprocessing keeps it, some of them with several captions; some are bad.
class FakeSource : public SampleSource {
 public:
  explicit FakeSource(int64_t size) : size_(size) {}

  int64_t size() const override { return size_; }

  void read(int64_t index, RandomStream& random, Sample& sample) const override {
    const auto captions = read_with_all_captions(index, sample);
    const auto count = static_cast<int64_t>(captions.size());
    sample.caption = captions[static_cast<size_t>(count == 1 ? 0 : random.below(count))];
  }

  std::vector<std::string> read_with_all_captions(int64_t index, Sample& sample) const override {
    if (read_errors.contains(index)) throw DataError(read_errors.at(index));
    if (files.contains(index)) {
      sample.encoded = files.at(index);
    } else {
      sample.drawn = {.width = 6, .height = 5, .mode = image::PixelMode::rgb, .pixels = {}, .palette = {}};
      for (int64_t i = 0; i < 6 * 5; ++i) {
        for (const int64_t value : {index % 256, (7 * index) % 256, int64_t{9}}) {
          sample.drawn.pixels.push_back(static_cast<uint8_t>(value));
        }
      }
    }
    std::vector<std::string> captions{"number " + std::to_string(index)};
    for (int64_t i = 0; i < index % 3; ++i) captions.push_back("caption " + std::to_string(i) + " of a few");
    if (empty.contains(index)) captions = {" "};
    sample.caption = captions.front();
    return captions;
  }

  std::string key(int64_t index) const override { return "k" + std::to_string(index); }
  std::string describe(int64_t index) const override { return "[fake.tar] sample " + key(index); }
  std::string fingerprint() const override { return "fake data"; }
  std::string settings() const override { return "image jpg, caption txt"; }

  std::map<int64_t, std::string> read_errors;
  std::set<int64_t> empty;
  std::map<int64_t, std::vector<uint8_t>> files;

 private:
  int64_t size_;
};

std::shared_ptr<const text::ClipTokenizer> tokenizer() {
  static const auto shared = std::make_shared<const text::ClipTokenizer>(test::merges_file());
  return shared;
}

std::shared_ptr<FakeSource> source_with_bad_samples(int64_t size) {
  auto source = std::make_shared<FakeSource>(size);
  source->read_errors = {{4, "no caption: expected a member .txt"}, {17, "shard ends\ttoo early"}};
  source->empty = {9};
  source->files = {{11, {'n', 'o', ' ', 'i', 'm', 'a', 'g', 'e'}}};
  return source;
}

CacheDescription description_of(const SampleSource& source) {
  CacheDescription description;
  description.num_samples = source.size();
  description.samples_per_part = 10;
  description.feature_width = 3;
  description.dtype = at::kFloat;
  description.precision = "fp32";
  description.tower = std::string(64, 'a');
  description.preprocessing = "as it is";
  description.data = source.fingerprint();
  description.data_settings = source.settings();
  description.tokenizer = std::string(64, 'b');
  description.context_length = kContext;
  return description;
}

EmbeddingCacheLoaderOptions loader_options(const CacheDescription& description) {
  EmbeddingCacheLoaderOptions options;
  options.image_size = kSide;
  options.crop.kind = image::TrainCrop::none;
  options.crop.evaluation.size = kSide;
  options.num_views = description.num_views;
  options.context_length = description.context_length;
  options.samples_per_part = description.samples_per_part;
  options.batch_size = 4;
  return options;
}

/// Stands for a tower: the mean colour. Shapes: [..., S, S, 3] to [..., 3].
torch::Tensor mean_color(const torch::Tensor& images) {
  return images.to(at::kFloat).mean(at::IntArrayRef{-2, -3});
}

using Tower = std::function<torch::Tensor(const torch::Tensor&)>;

/// Writes parts until the cache is complete, or `max_parts`.
void make_parts(EmbeddingCacheWriter& writer, const SampleSource& source, EmbeddingCacheLoaderOptions options,
                const Tower& tower = mean_color, int64_t max_parts = 1000) {
  options.first_sample = writer.next_sample();
  EmbeddingCacheLoader loader(source, *tokenizer(), options);
  for (int64_t part = 0; part < max_parts && writer.next_sample() < source.size(); ++part) {
    std::vector<torch::Tensor> features;
    CachedSamples samples;
    for (int64_t done = writer.next_sample(); done < writer.part_end();) {
      auto batch = loader.next().value();
      EXPECT_EQ(batch.begin, done);
      features.push_back(tower(batch.images));
      samples.append(std::move(batch.samples));
      done = batch.end;
    }
    writer.write_part(at::cat(features), samples);
  }
}

CacheReport make_cache(const fs::path& folder, const SampleSource& source, const CacheDescription& description) {
  EmbeddingCacheWriter writer(folder, description);
  make_parts(writer, source, loader_options(description));
  return writer.finish();
}

TrainLoaderOptions train_options() {
  TrainLoaderOptions options;
  options.batch_size = 8;
  options.image_size = kSide;
  options.context_length = kContext;
  options.crop.kind = image::TrainCrop::none;
  options.crop.evaluation.size = kSide;
  options.seed = kSeed;
  options.on_bad_sample = BadSamplePolicy::skip;
  return options;
}

std::map<std::string, std::string> files_in(const fs::path& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::directory_iterator(folder)) {
    files[entry.path().filename().string()] = test::read_file(entry.path());
  }
  return files;
}

void replace_in(const fs::path& file, const std::string& from, const std::string& to) {
  auto text = test::read_file(file);
  const auto place = text.find(from);
  ASSERT_NE(place, text.npos) << from;
  test::write_file(file, text.replace(place, from.size(), to));
}

class EmbeddingCacheTest : public ::testing::Test {
 protected:
  fs::path path(const std::string& name = "cache") const { return folder_.path() / name; }
  std::string opening_error(const std::string& name = "cache") const {
    return error_of<DataError>([&] { EmbeddingCache cache(path(name)); });
  }
  std::string shown(const std::string& name = "cache") const { return "[" + path(name).string() + "]"; }

  test::TemporaryDirectory folder_;
};

TEST_F(EmbeddingCacheTest, GivesTheBatchesOfALiveRunOnAnyNumberOfRanks) {
  const auto source = source_with_bad_samples(47);
  make_cache(path(), *source, description_of(*source));
  const auto cached = std::make_shared<EmbeddingCacheSource>(std::make_shared<EmbeddingCache>(path()));
  for (const auto& [ranks, first_step] : {std::pair{1, 0}, {2, 0}, {4, 3}}) {
    for (int rank = 0; rank < ranks; ++rank) {
      auto options = train_options();
      options.rank = rank;
      options.world_size = ranks;
      options.first_step = first_step;
      options.cut_tokens = rank != 1;
      TrainLoader live(source, tokenizer(), options);
      options.feature_width = 3;
      TrainLoader from_cache(cached, nullptr, options);
      for (int64_t step = 0; step < 20; ++step) {
        const auto expected = live.next(), actual = from_cache.next();
        EXPECT_TRUE(test::tensors_equal("tokens", actual.tokens, expected.tokens)) << "step " << step;
        EXPECT_TRUE(test::tensors_equal("features", actual.features, mean_color(expected.images))) << "step " << step;
        EXPECT_FALSE(actual.images.defined());
        EXPECT_FALSE(expected.features.defined());
      }
      EXPECT_EQ(from_cache.bad_samples().by_reason, live.bad_samples().by_reason);
      EXPECT_GT(live.bad_samples().total, 0);
    }
  }
}

TEST_F(EmbeddingCacheTest, ReportsMissingSamplesWithTheReasonsOfALiveRun) {
  const auto source = source_with_bad_samples(47);
  const auto report = make_cache(path(), *source, description_of(*source));
  EXPECT_EQ(report.num_samples, 47);
  EXPECT_EQ(report.num_missing, 4);
  EXPECT_EQ(report.missing_by_reason,
            (std::map<std::string, int64_t>{
                {"caption missing", 1}, {"caption empty", 1}, {"undecodable image", 1}, {"unreadable sample", 1}}));
  EXPECT_EQ(report.first_missing.at(0), "k4: no caption: expected a member .txt");
  EXPECT_EQ(report.first_missing.at(3), "k17: shard ends\ttoo early");
  const auto cached = std::make_shared<EmbeddingCacheSource>(std::make_shared<EmbeddingCache>(path()));
  EXPECT_EQ(cached->cache().num_missing(), 4);
  auto options = train_options();
  options.feature_width = 3;
  options.on_bad_sample = BadSamplePolicy::fail;
  options.batch_size = 1;
  TrainLoader loader(cached, nullptr, options);
  const SampleOrder order(kSeed, source->size());
  const std::set<int64_t> bad{4, 9, 11, 17};
  int64_t position = 0;
  while (!bad.contains(order.at(0, position))) ++position;
  for (int64_t i = 0; i < position; ++i) loader.next();
  const auto message = error_of<DataError>([&] { loader.next(); });
  EXPECT_TRUE(message.starts_with(shown() + " sample k" + std::to_string(order.at(0, position)) + ": ")) << message;
}

TEST_F(EmbeddingCacheTest, ChoosesAmongViewsByADrawOfItsOwn) {
  const auto source = std::make_shared<FakeSource>(20);
  auto description = description_of(*source);
  description.num_views = 3;
  auto loading = loader_options(description);
  loading.crop.kind = image::TrainCrop::random_resized;
  EmbeddingCacheWriter writer(path(), description);
  make_parts(writer, *source, loading, [](const torch::Tensor& images) {
    const auto colors = mean_color(images);  // [n, V, 3]
    return colors + 1000 * at::arange(3).reshape({1, 3, 1});
  });
  writer.finish();
  auto options = train_options();
  TrainLoader live(source, tokenizer(), options);
  options.feature_width = 3;
  TrainLoader cached(std::make_shared<EmbeddingCacheSource>(std::make_shared<EmbeddingCache>(path())), nullptr,
                     options);
  std::set<int64_t> seen;
  for (int64_t step = 0; step < 10; ++step) {
    const auto expected = live.next(), actual = cached.next();
    EXPECT_TRUE(test::tensors_equal("tokens", actual.tokens, expected.tokens));
    for (int64_t item = 0; item < 8; ++item) {
      const auto position = step * 8 + item;
      RandomStream random(kSeed, RandomPurpose::view, {position / 20, position % 20});
      const auto view = random.below(3);
      seen.insert(view);
      const auto color = mean_color(expected.images[item]);
      EXPECT_TRUE(test::tensors_equal("features", actual.features[item], color + 1000 * view));
    }
  }
  EXPECT_EQ(seen.size(), 3U);
}

TEST_F(EmbeddingCacheTest, AViewIsTheCropOfItsSeedNumberAndSample) {
  FakeSource source(1);
  std::vector<uint8_t> pixels;
  for (int i = 0; i < 40 * 30 * 3; ++i) pixels.push_back(static_cast<uint8_t>(i * 31 % 251));
  const image::Image image{.width = 40, .height = 30, .mode = image::PixelMode::rgb, .pixels = pixels, .palette = {}};
  class OneImage : public FakeSource {
   public:
    explicit OneImage(const image::Image& image) : FakeSource(1), image_(image) {}
    std::vector<std::string> read_with_all_captions(int64_t, Sample& sample) const override {
      sample.drawn = image_;
      return {"x"};
    }

   private:
    const image::Image& image_;
  };
  auto options = loader_options(description_of(source));
  options.crop = {.kind = image::TrainCrop::random_resized, .scale_min = 0.2};
  options.num_views = 2;
  options.view_seed = 77;
  const OneImage one(image);
  EmbeddingCacheLoader loader(one, *tokenizer(), options);
  const auto batch = loader.next().value();
  EXPECT_EQ(loader.next(), std::nullopt);
  for (int64_t view = 0; view < 2; ++view) {
    std::vector<uint8_t> expected(kSide * kSide * 3);
    RandomStream random(77, RandomPurpose::view_crop, {view, 0});
    image::crop_for_training(image, kSide, options.crop, random, expected);
    const auto actual = batch.images[0][view].contiguous();
    EXPECT_TRUE(std::equal(expected.begin(), expected.end(), actual.data_ptr<uint8_t>())) << "view " << view;
  }
}

TEST_F(EmbeddingCacheTest, GoesOnAfterTheLastWholePartToTheSameBytes) {
  const auto source = source_with_bad_samples(34);
  const auto description = description_of(*source);
  const auto report = make_cache(path("straight"), *source, description);
  {
    EmbeddingCacheWriter writer(path(), description);
    make_parts(writer, *source, loader_options(description), mean_color, 2);
  }
  EXPECT_EQ(opening_error(),
            shown() + " is not complete: the command that makes this cache goes on when it is repeated");
  test::write_file(path() / "part_00002.safetensors.tmp", "what a kill leaves");
  {
    EmbeddingCacheWriter writer(path(), description);
    EXPECT_EQ(writer.next_sample(), 20);
    EXPECT_EQ(writer.num_missing(), 4);
    make_parts(writer, *source, loader_options(description));
    EXPECT_FALSE(writer.is_complete());
    const auto resumed = writer.finish();
    EXPECT_EQ(resumed.missing_by_reason, report.missing_by_reason);
    EXPECT_EQ(resumed.bytes, report.bytes);
  }
  fs::remove(path() / "part_00002.safetensors.tmp");
  EXPECT_EQ(files_in(path()), files_in(path("straight")));
  EmbeddingCacheWriter writer(path(), description);
  EXPECT_TRUE(writer.is_complete());
  EXPECT_EQ(writer.next_sample(), 34);
  EXPECT_EQ(writer.finish().num_missing, 4);
}

TEST_F(EmbeddingCacheTest, RefusesToGoOnWithOtherSettings) {
  const FakeSource source(34);
  const auto description = description_of(source);
  {
    EmbeddingCacheWriter writer(path(), description);
    make_parts(writer, source, loader_options(description), mean_color, 1);
  }
  auto other = description;
  other.dtype = at::kHalf;
  other.tower = "other";
  other.samples_per_part = 5;
  const auto refuse = [&] { return error_of<ConfigError>([&] { EmbeddingCacheWriter writer(path(), other); }); };
  const auto expected = shown() + " holds a cache that was made otherwise: samples_per_part: 10, now 5; dtype: fp32, " +
                        "now fp16; tower: " + std::string(64, 'a') + ", now other; remove it or choose another place";
  EXPECT_EQ(refuse(), expected);
  make_cache(path(), source, description);
  EXPECT_EQ(refuse(), expected);
}

TEST_F(EmbeddingCacheTest, OneWriterLocksOutAnother) {
  const FakeSource source(34);
  const EmbeddingCacheWriter first(path(), description_of(source));
  EXPECT_EQ(error_of<ConfigError>([&] { EmbeddingCacheWriter second(path(), description_of(source)); }),
            shown() + " is being written by another process");
}

TEST_F(EmbeddingCacheTest, WritesToNoFolderWithOtherFilesAndToNoFile) {
  const FakeSource source(3);
  fs::create_directories(path());
  test::write_file(path() / "notes.txt", "mine");
  EXPECT_EQ(error_of<ConfigError>([&] { EmbeddingCacheWriter writer(path(), description_of(source)); }),
            shown() + " holds other files (notes.txt); choose an empty or a new folder");
  EXPECT_TRUE(error_of<ConfigError>([&] {
                EmbeddingCacheWriter writer(path() / "notes.txt", description_of(source));
              }).starts_with("[" + (path() / "notes.txt").string() + "] can't be made: "));
}

TEST_F(EmbeddingCacheTest, HoldsFeaturesInEachDtypeAsLibTorchRoundsThem) {
  const FakeSource source(10);
  const auto features = test::random_normal({10, 1, 3}, 3);
  for (const auto dtype : {at::kFloat, at::kHalf, at::kBFloat16}) {
    auto description = description_of(source);
    description.dtype = dtype;
    const auto name = std::string(c10::toString(dtype));
    EmbeddingCacheWriter writer(path(name), description);
    int64_t done = 0;
    make_parts(writer, source, loader_options(description), [&](const torch::Tensor& images) {
      done += images.size(0);
      return features.narrow(0, done - images.size(0), images.size(0));
    });
    writer.finish();
    const EmbeddingCache cache(path(name));
    for (int64_t sample = 0; sample < 10; ++sample) {
      auto row = at::empty({3});
      cache.read_features(sample, 0, {row.data_ptr<float>(), 3});
      EXPECT_TRUE(test::tensors_equal(name, row, features[sample][0].to(dtype).to(at::kFloat)));
    }
    EXPECT_EQ(error_of<DataError>([&] { cache.key(10); }), shown(name) + " sample index 10 is outside [0, 10)");
    cache.verify();
  }
}

TEST_F(EmbeddingCacheTest, RefusesFeaturesThatItsDtypeCannotHold) {
  const FakeSource source(10);
  auto description = description_of(source);
  description.dtype = at::kHalf;
  const auto error = [&](double value) {
    EmbeddingCacheWriter writer(path(), description);
    return error_of<DataError>([&] {
      make_parts(writer, source, loader_options(description), [&](const torch::Tensor& images) {
        auto features = mean_color(images);
        features.select(2, 1).masked_fill_(features.select(2, 0).eq(6), value);
        return features;
      });
    });
  };
  EXPECT_EQ(error(1e6), "sample k6: its features are too large for fp16 (bf16 and fp32 hold them)");
  EXPECT_EQ(error(std::numeric_limits<double>::quiet_NaN()), "sample k6: its features are not finite");
}

TEST_F(EmbeddingCacheTest, FindsDamagedAndForeignFilesWhenItIsOpenedOrVerified) {
  const FakeSource source(34);
  const auto description = description_of(source);
  EXPECT_EQ(opening_error(), shown() + " is no embedding cache: it has no cache.json");
  make_cache(path(), source, description);
  const auto part = path() / "part_00001.safetensors", manifest = path() / "cache.json";
  const auto whole = test::read_file(part), text = test::read_file(manifest);
  const auto restore = [&] {
    test::write_file(part, whole);
    test::write_file(manifest, text);
  };

  test::write_file(part, whole.substr(0, whole.size() - 1));
  EXPECT_EQ(opening_error(), "[" + part.string() + "] has " + std::to_string(whole.size() - 1) + " bytes, expected " +
                                 std::to_string(whole.size()) + ": it is damaged, or changed since it was written");
  fs::remove(part);
  EXPECT_EQ(opening_error(), "[" + part.string() + "] can't be read: No such file or directory");
  restore();
  test::write_file(part, test::read_file(path() / "part_00002.safetensors"));
  EXPECT_NE(opening_error(), "no error");
  restore();

  auto flipped = whole;
  flipped[whole.find("k10")] ^= 1;
  test::write_file(part, flipped);
  const EmbeddingCache changed(path());
  const auto message = error_of<DataError>([&] { changed.verify(); });
  EXPECT_TRUE(message.starts_with(shown() + " 1 of 4 files changed after they were written: part_00001.safetensors is "
                                            "sha256 "))
      << message;
  restore();

  const auto error = [&](const std::string& from, const std::string& to) {
    replace_in(manifest, from, to);
    auto result = opening_error();
    restore();
    const auto prefix = "[" + manifest.string() + "] ";
    return result.starts_with(prefix) ? result.substr(prefix.size()) : result;
  };
  const std::string no_description = "is not the description of an embedding cache: ";
  EXPECT_EQ(error("{", "["), no_description + "it is not a JSON object");
  EXPECT_EQ(error("\"version\": 1", "\"version\": 2"),
            no_description + "its version is 2, this library knows version 1");
  EXPECT_EQ(error("\"tower\"", "\"tovver\""), no_description + "it has no 'tower'");
  EXPECT_EQ(error("\"num_views\": 1", "\"num_views\": 0"),
            no_description + "[embedding cache] num_views must be in [1, 1024], but is 0");
  EXPECT_EQ(error("\"num_samples\": 34", "\"num_samples\": -34"), no_description + "'num_samples' is not a count");
  EXPECT_EQ(error("\"num_samples\": 34", "\"num_samples\": 44"), no_description + "'parts' must be a list of 5");
  EXPECT_EQ(error("\"dtype\": \"fp32\"", "\"dtype\": \"fp64\""),
            no_description + "'dtype' must be fp16, bf16 or fp32, but is 'fp64'");
  EXPECT_EQ(error("\"num_missing\": 0", "\"num_missing\": 1"), "says that 1 samples are missing, but 0 are");
  EXPECT_EQ(error("as it is", "as it was"), no_description + "'preprocessing_sha256' is not that of 'preprocessing'");
  EXPECT_EQ(error("fake data", "real data"),
            "[" + (path() / "part_00000.safetensors").string() + "] is a part of another cache");
}

TEST_F(EmbeddingCacheTest, FindsIndexesThatPointOutside) {
  const FakeSource source(10);
  make_cache(path(), source, description_of(source));
  const auto part = path() / "part_00000.safetensors";
  const auto original = test::read_file(part);
  const auto error = [&](const std::string& name, int64_t place, int64_t value) {
    test::write_file(part, original);
    NamedTensors tensors;
    std::map<std::string, std::string> metadata;
    {
      const SafetensorsFile file(part);
      metadata = file.metadata();
      for (const auto& [own, tensor] : file.tensors()) tensors.emplace_back(own, tensor.clone());
    }
    for (auto& [own, tensor] : tensors) {
      if (own == name) tensor[place] = value;
    }
    write_safetensors(part, tensors, metadata);
    const auto message = opening_error();
    const auto prefix = "[" + part.string() + "] ";
    return message.starts_with(prefix) ? message.substr(prefix.size()) : message;
  };
  EXPECT_EQ(error("lengths", 0, 4), "no error");
  EXPECT_EQ(error("lengths", 3, 13), "caption 3 has 13 ids, expected 1 to 12");
  EXPECT_EQ(error("lengths", 3, 0), "caption 3 has 0 ids, expected 1 to 12");
  EXPECT_EQ(error("caption_begin", 10, 1000), "'caption_begin' does not ascend from 0 to 19");
  EXPECT_EQ(error("caption_begin", 2, 1000), "'caption_begin' does not ascend from 0 to 19");
  EXPECT_EQ(error("key_begin", 0, -1), "'key_begin' does not ascend from 0 to 20");
  EXPECT_EQ(error("caption_begin", 1, 0), "sample 0 has no caption, but is not listed as missing");
}

TEST_F(EmbeddingCacheTest, SaysEverythingInWhichItDiffersFromWhatARunNeeds) {
  const FakeSource source(34);
  make_cache(path(), source, description_of(source));
  const EmbeddingCache cache(path());
  ExpectedCache expected{.tower = std::string(64, 'a'),
                         .preprocessing = "as it is",
                         .data = "fake data",
                         .data_settings = "image jpg, caption txt",
                         .tokenizer = std::string(64, 'b'),
                         .num_samples = 34,
                         .feature_width = 3,
                         .context_length = kContext};
  require_matching_cache(cache, expected);
  require_matching_cache(cache, {});
  expected.tower = std::string(64, 'c');
  const auto error = [&] { return error_of<ConfigError>([&] { require_matching_cache(cache, expected); }); };
  const auto start =
      "image.cache: " + shown() +
      " (fp32, computed in fp32) was made with other weights of the image tower: sha256 aaaaaaaaaaaa..., "
      "the run's is sha256 cccccccccccc...";
  EXPECT_EQ(error(), start);
  expected.preprocessing = "cropped";
  expected.data = "new data";
  expected.data_settings = "image png, caption txt";
  expected.tokenizer = std::string(64, 'd');
  expected.context_length = 77;
  EXPECT_EQ(error(), start +
                         "; other preprocessing: 'as it is', the run's is 'cropped'; other training data: 'fake data', "
                         "the run's is 'new data'; other images or captions of the samples: 'image jpg, caption txt', "
                         "the run's is 'image png, caption txt'; another tokenizer: sha256 bbbbbbbbbbbb..., the run's "
                         "is sha256 dddddddddddd...; another context length: 12, the run's is 77");
}

TEST_F(EmbeddingCacheTest, DescribesPreprocessingInFull) {
  image::PreprocessSpec spec;
  spec.size = 32;
  spec.mean = {0.5F, 0.25F, 0.1F};
  spec.std = {1, 1, 1};
  EXPECT_EQ(cached_preprocessing(spec, {.kind = image::TrainCrop::none}),
            "resized (shortest, bicubic) to 32, mean (0.5, 0.25, 0.1), std (1, 1, 1)");
  EXPECT_EQ(cached_preprocessing(spec, {.scale_min = 0.5}),
            "cropped (random_resized, 0.5 to 1 of the area) to 32, mean (0.5, 0.25, 0.1), std (1, 1, 1)");
  spec.resize_mode = image::ResizeMode::longest;
  spec.interpolation = image::Interpolation::bilinear;
  spec.fill_color = 3;
  EXPECT_EQ(cached_preprocessing(spec, {.kind = image::TrainCrop::none}),
            "resized (longest, bilinear) to 32, filled with 3, mean (0.5, 0.25, 0.1), std (1, 1, 1)");
  spec.resize_mode = image::ResizeMode::squash;
  spec.antialias = false;
  spec.crop_fraction = 0.875;
  EXPECT_EQ(
      cached_preprocessing(spec, {.kind = image::TrainCrop::none}),
      "resized (squash, bilinear, no antialias) to 32, the middle 0.875 of it, mean (0.5, 0.25, 0.1), std (1, 1, 1)");
}

TEST_F(EmbeddingCacheTest, TheTokenizerFingerprintTellsVocabulariesAndContextLengthsApart) {
  const text::ClipTokenizer same(test::merges_file());
  EXPECT_EQ(tokenizer_fingerprint(same, 77), tokenizer_fingerprint(*tokenizer(), 77));
  EXPECT_NE(tokenizer_fingerprint(same, 77), tokenizer_fingerprint(same, 64));
  EXPECT_EQ(tokenizer_fingerprint(same, 77).size(), 64U);
}

TEST_F(EmbeddingCacheTest, ShardsGiveAllCaptionsOfASampleInTheOrderOfTheDraw) {
  test::write_tar(folder_.path() / "a.tar", {{"0.jpg", "I"}, {"0.json", R"({"c": ["a", "b", " c "]})"}});
  const WebdatasetSource source(ShardIndex::open({folder_.path() / "a.tar"}), {.caption_key = "json:c"});
  Sample sample;
  const auto captions = source.read_with_all_captions(0, sample);
  EXPECT_EQ(captions, (std::vector<std::string>{"a", "b", "c"}));
  EXPECT_EQ(sample.caption, "a");
  EXPECT_EQ(source.key(0), "0");
  EXPECT_EQ(source.settings(), "image jpg;jpeg;png;webp, caption json:c");
  for (int64_t i = 0; i < 20; ++i) {
    RandomStream drawn(kSeed, RandomPurpose::caption, {i}), expected(kSeed, RandomPurpose::caption, {i});
    source.read(0, drawn, sample);
    EXPECT_EQ(sample.caption, captions[static_cast<size_t>(expected.below(3))]);
  }
}

TEST_F(EmbeddingCacheTest, SeveralViewsNeedACrop) {
  const FakeSource source(3);
  auto options = loader_options(description_of(source));
  options.num_views = 2;
  EXPECT_EQ(error_of<ConfigError>([&] { EmbeddingCacheLoader loader(source, *tokenizer(), options); }),
            "[embedding cache] 2 views of an image would all be the same: data.crop.kind is none");
}

TEST(TrainCropNoneTest, GivesEvaluationPreprocessing) {
  std::vector<uint8_t> pixels;
  for (int i = 0; i < 40 * 30 * 3; ++i) pixels.push_back(static_cast<uint8_t>(i * 17 % 251));
  const image::Image image{.width = 40, .height = 30, .mode = image::PixelMode::rgb, .pixels = pixels, .palette = {}};
  image::TrainCropOptions options{.kind = image::TrainCrop::none};
  options.evaluation.size = 8;
  std::vector<uint8_t> out(8 * 8 * 3);
  RandomStream random(kSeed, RandomPurpose::crop, {});
  for (const auto mode : {image::ResizeMode::shortest, image::ResizeMode::longest, image::ResizeMode::squash}) {
    options.evaluation.resize_mode = mode;
    image::crop_for_training(image, 8, options, random, out);
    EXPECT_EQ(out, image::preprocess_for_evaluation(image, options.evaluation).pixels);
  }
  std::vector<uint8_t> larger(9 * 9 * 3);
  EXPECT_EQ(error_of([&] { image::crop_for_training(image, 9, options, random, larger); }),
            "[crop_for_training] without a crop, size must be that of the evaluation preprocessing, 8, but is 9");
}

}  // namespace
}  // namespace contrastive::data
