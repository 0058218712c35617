#include "contrastive/eval/encoder.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <thread>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>
#include <torch/utils.h>

#include "contrastive/core/error.h"
#include "contrastive/core/file.h"
#include "contrastive/text/clip_tokenizer.h"

#include "tests/support/errors.h"
#include "tests/support/paths.h"

namespace contrastive::eval {
namespace {

namespace fs = std::filesystem;

constexpr const char* kModel = R"({"embed_dim": 12,
  "vision_cfg": {"image_size": 24, "patch_size": 8, "width": 16, "head_width": 8, "layers": 2},
  "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}})";

LoadedModel make_model() {
  LoadedModel loaded{.model = models::ClipModel(models::load_model_config(parse_config(kModel, "test"))),
                     .preprocess = {},
                     .folder = {}};
  loaded.model->reset_parameters(at::make_generator<at::CPUGeneratorImpl>(uint64_t{3}));
  loaded.preprocess.size = 24;
  return loaded;
}

std::shared_ptr<const text::Tokenizer> tokenizer() {
  static const auto shared = std::make_shared<const text::ClipTokenizer>(test::merges_file());
  return shared;
}

EncoderOptions cpu_options() {
  EncoderOptions options;
  options.device = torch::kCPU;
  options.batch_size = 4;
  options.threads = 2;
  return options;
}

Encoder make_encoder(const EncoderOptions& options = cpu_options()) {
  return Encoder(make_model(), tokenizer(), options);
}

std::vector<fs::path> image_files() {
  const auto folder = test::own_fixtures_dir() / "image";
  return {folder / "420.jpg",     folder / "rgba.png",    folder / "alpha.webp",
          folder / "palette.gif", folder / "rgb.bmp",     folder / "tall.png",
          folder / "grey16.png",  folder / "bilevel.png", folder / "cmyk.jpg"};
}

const std::vector<std::string> kTexts{"a photo of a cat", "",
                                      "two dogs in the snow near a very long fence made of wood", "caf\xC3\xA9",
                                      "a photo of a cat"};

std::vector<uint8_t> bytes_of(const fs::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

/// One image at a time, by the definition: RGB, preprocess, scale, forward.
torch::Tensor reference_features(const fs::path& file) {
  const torch::NoGradGuard no_grad;
  auto loaded = make_model();
  loaded.model->eval();
  const auto square =
      image::preprocess_for_evaluation(image::to_rgb(image::decode_image(bytes_of(file))), loaded.preprocess);
  auto input = at::empty({1, 3, 24, 24});
  for (int64_t i = 0; i < 24 * 24 * 3; ++i) {
    const auto channel = static_cast<size_t>(i % 3);
    const auto value =
        (static_cast<float>(square.pixels[static_cast<size_t>(i)]) / 255.0F - loaded.preprocess.mean.at(channel)) /
        loaded.preprocess.std.at(channel);
    input.view({3, 24 * 24})[i % 3][i / 3] = value;
  }
  return loaded.model->encode_image(input);
}

float largest_difference(const torch::Tensor& a, const torch::Tensor& b) {
  return (a - b).abs().max().item<float>();
}

TEST(EncoderTest, EncodesFilesAsTheModelDoesOneByOne) {
  const auto files = image_files();
  const auto encoder = make_encoder();
  const auto features = encoder.encode_images(files);
  const auto raw = encoder.unnormalized().encode_images(files);
  ASSERT_EQ(features.sizes(), (std::vector<int64_t>{9, 12}));
  EXPECT_EQ(features.scalar_type(), at::kFloat);
  for (size_t i = 0; i < files.size(); ++i) {
    SCOPED_TRACE(files[i].filename());
    const auto expected = reference_features(files[i])[0];
    const auto row = static_cast<int64_t>(i);
    EXPECT_LT(largest_difference(raw[row], expected), 1e-5);
    EXPECT_LT(largest_difference(features[row], expected / expected.norm()), 1e-5);
  }
}

TEST(EncoderTest, GivesTheSameRowsFromFilesBytesAndPixels) {
  const auto files = image_files();
  const auto encoder = make_encoder();
  const auto from_files = encoder.encode_images(files);
  std::vector<std::vector<uint8_t>> contents;
  std::transform(files.begin(), files.end(), std::back_inserter(contents), bytes_of);
  const std::vector<std::span<const uint8_t>> spans(contents.begin(), contents.end());
  EXPECT_TRUE(at::equal(encoder.encode_image_bytes(spans), from_files));

  auto pixels = at::empty({9, 24, 24, 3}, at::kByte);
  for (size_t i = 0; i < files.size(); ++i) {
    const auto square =
        image::preprocess_for_evaluation(image::to_rgb(image::decode_image(contents[i])), encoder.preprocess());
    std::copy(square.pixels.begin(), square.pixels.end(), pixels[static_cast<int64_t>(i)].data_ptr<uint8_t>());
  }
  EXPECT_TRUE(at::equal(encoder.encode_images(pixels), from_files));
}

TEST(EncoderTest, DoesNotDependOnBatchesAndThreads) {
  const auto files = image_files();
  const auto expected = make_encoder().encode_images(files);
  const auto expected_texts = make_encoder().encode_texts(kTexts);
  for (const int64_t batch_size : {1, 3, 64}) {
    auto options = cpu_options();
    options.batch_size = batch_size;
    options.threads = batch_size;
    const auto encoder = make_encoder(options);
    EXPECT_LT(largest_difference(encoder.encode_images(files), expected), 1e-6) << batch_size;
    EXPECT_LT(largest_difference(encoder.encode_texts(kTexts), expected_texts), 1e-6) << batch_size;
  }
}

TEST(EncoderTest, EncodesTextsAsTheModelDoesOneByOne) {
  const torch::NoGradGuard no_grad;
  auto loaded = make_model();
  loaded.model->eval();
  const auto features = make_encoder().encode_texts(kTexts);
  for (size_t i = 0; i < kTexts.size(); ++i) {
    std::vector<int32_t> ids(12);
    tokenizer()->tokenize(kTexts[i], ids);
    const auto tokens = at::tensor(ids).to(at::kLong).unsqueeze(0);
    const auto expected = loaded.model->encode_text(tokens)[0];
    EXPECT_LT(largest_difference(features[static_cast<int64_t>(i)], expected / expected.norm()), 1e-5) << kTexts[i];
  }
}

TEST(EncoderTest, AnswersManyThreadsAtOnceAsOneAlone) {
  const auto files = image_files();
  for (const bool bf16 : {false, true}) {
    auto options = cpu_options();
    options.bf16 = bf16;
    const auto encoder = make_encoder(options);
    const auto images = encoder.encode_images(files);
    const auto texts = encoder.encode_texts(kTexts);
    std::vector<int> wrong(6);
    {
      std::vector<std::jthread> threads;
      for (auto& count : wrong) {
        threads.emplace_back([&] {
          for (int i = 0; i < 4; ++i) {
            count += at::equal(encoder.encode_images(files), images) ? 0 : 1;
            count += at::equal(encoder.encode_texts(kTexts), texts) ? 0 : 1;
          }
        });
      }
    }
    EXPECT_EQ(wrong, std::vector<int>(6)) << (bf16 ? "bf16" : "fp32");
  }
}

TEST(EncoderTest, StaysNearInBf16) {
  auto options = cpu_options();
  options.bf16 = true;
  const auto features = make_encoder(options).encode_images(image_files());
  EXPECT_EQ(features.scalar_type(), at::kFloat);
  const auto distance = largest_difference(features, make_encoder().encode_images(image_files()));
  EXPECT_GT(distance, 0);
  EXPECT_LT(distance, 0.02);
}

TEST(EncoderTest, GivesNoRowsForNoInput) {
  const auto encoder = make_encoder();
  const std::vector<int64_t> expected{0, 12};
  EXPECT_EQ(encoder.encode_images(std::span<const fs::path>{}).sizes(), expected);
  EXPECT_EQ(encoder.encode_image_bytes({}).sizes(), expected);
  EXPECT_EQ(encoder.encode_texts({}).sizes(), expected);
  EXPECT_EQ(encoder.encode_images(at::empty({0, 24, 24, 3}, at::kByte)).sizes(), expected);
}

TEST(EncoderTest, NamesTheImageThatCannotBeRead) {
  const test::TemporaryDirectory folder;
  const auto bad = folder.path() / "bad.png";
  write_file_atomically(bad, "this is no image");
  auto files = image_files();
  files.insert(files.begin() + 6, {bad, folder.path() / "missing.jpg", folder.path()});
  const auto encoder = make_encoder();
  EXPECT_EQ(test::message_of<DataError>([&] { encoder.encode_images(std::span(files).first(7)); }),
            "[" + bad.string() +
                "]: image: expected a JPEG, PNG, WebP, GIF or BMP, but this starts with 74 68 69 73 20 69 73 20 (16 "
                "bytes)");
  const std::vector<uint8_t> empty;
  const std::vector<std::span<const uint8_t>> images{empty};
  EXPECT_EQ(test::message_of<DataError>([&] { encoder.encode_image_bytes(images); }),
            "image 0: image: expected a JPEG, PNG, WebP, GIF or BMP, but there are no bytes");

  const auto result = encoder.try_encode_images(files);
  ASSERT_EQ(result.failures.size(), 3U);
  EXPECT_EQ(result.failures[0].index, 6);
  EXPECT_EQ(result.failures[0].name, "[" + bad.string() + "]");
  EXPECT_EQ(result.failures[1].reason, "the file does not exist");
  EXPECT_EQ(result.failures[2].reason, "it is not a regular file");
  const auto good = encoder.encode_images(image_files());
  EXPECT_EQ(result.features.narrow(0, 6, 3).abs().max().item<float>(), 0);
  EXPECT_LT(largest_difference(result.features.narrow(0, 0, 6), good.narrow(0, 0, 6)), 1e-6);
  EXPECT_LT(largest_difference(result.features.narrow(0, 9, 3), good.narrow(0, 6, 3)), 1e-6);
  EXPECT_TRUE(encoder.try_encode_images(image_files()).failures.empty());
}

TEST(EncoderTest, HonoursItsLimits) {
  auto options = cpu_options();
  options.limits.max_pixels = 61 * 45 - 1;
  options.truncate_texts = false;
  const auto encoder = make_encoder(options);
  EXPECT_NE(test::message_of<DataError>([&] { encoder.encode_images(image_files()); }).find("max_pixels"),
            std::string::npos);
  EXPECT_NE(test::message_of<DataError>([&] { encoder.encode_texts(kTexts); }), "no error");
  EXPECT_NO_THROW(encoder.encode_texts(std::span(kTexts).first(2)));
}

TEST(EncoderTest, RefusesWrongOptionsAndInputs) {
  auto options = cpu_options();
  options.batch_size = 0;
  EXPECT_EQ(test::message_of<ConfigError>([&] { make_encoder(options); }),
            "[encoder] batch_size must be in [1, 65536], but is 0");
  const auto encoder = make_encoder();
  EXPECT_NE(test::message_of<c10::Error>([&] {
              encoder.encode_images(at::zeros({1, 24, 25, 3}, at::kByte));
            }).find("[encode_images] pixels must be uint8 [N, 24, 24, 3], but are Byte [1, 24, 25, 3]"),
            std::string::npos);
  EXPECT_EQ(test::message_of<ConfigError>([&] { Encoder(make_model(), nullptr, cpu_options()).encode_texts(kTexts); }),
            "[encode_texts] this encoder was made without a tokenizer");
}

/// Encoded files, of which one is damaged, and a drawn image.
class MixedSource : public data::SampleSource {
 public:
  int64_t size() const override { return 4; }
  void read(int64_t index, RandomStream&, data::Sample& sample) const override {
    if (index == 1) throw DataError("no image member");
    if (index == 3) {
      sample.drawn = image::decode_image(bytes_of(image_files()[0]));
    } else {
      sample.encoded = bytes_of(image_files()[static_cast<size_t>(index)]);
    }
  }
  std::string describe(int64_t index) const override { return "sample " + std::to_string(index); }
  std::string fingerprint() const override { return "mixed"; }
};

TEST(EncoderTest, EncodesAPartOfASource) {
  const auto encoder = make_encoder();
  const auto all = encoder.encode_images(image_files());
  const MixedSource source;
  const auto result = encoder.try_encode_images(source, 1, 4);
  ASSERT_EQ(result.features.size(0), 3);
  ASSERT_EQ(result.failures.size(), 1U);
  EXPECT_EQ(result.failures[0].index, 0);
  EXPECT_EQ(result.failures[0].name, "sample 1");
  EXPECT_EQ(result.failures[0].reason, "no image member");
  EXPECT_EQ(result.features[0].abs().max().item<float>(), 0);
  EXPECT_LT(largest_difference(result.features[1], all[2]), 1e-6);
  EXPECT_LT(largest_difference(result.features[2], all[0]), 1e-6);
  EXPECT_EQ(test::message_of<Error>([&] { encoder.try_encode_images(source, 2, 5); }),
            "[encode_images] samples [2, 5) do not lie in a source of 4");
}

TEST(EncoderTest, ChangesItsFingerprintWithWeightsAndPreprocessing) {
  const auto expected = make_encoder().fingerprint();
  EXPECT_EQ(make_encoder().fingerprint(), expected);
  auto other_weights = make_model();
  other_weights.model->reset_parameters(at::make_generator<at::CPUGeneratorImpl>(uint64_t{4}));
  EXPECT_NE(Encoder(other_weights, tokenizer(), cpu_options()).fingerprint(), expected);
  auto other_preprocessing = make_model();
  other_preprocessing.preprocess.resize_mode = image::ResizeMode::squash;
  EXPECT_NE(Encoder(other_preprocessing, tokenizer(), cpu_options()).fingerprint(), expected);
}

TEST(EncoderTest, TellsWhatTheModelIs) {
  const auto encoder = make_encoder();
  EXPECT_EQ(encoder.embed_dim(), 12);
  EXPECT_EQ(encoder.image_size(), 24);
  EXPECT_NEAR(encoder.logit_scale(), 1 / 0.07, 1e-4);
  EXPECT_FALSE(encoder.logit_bias().has_value());
}

}  // namespace
}  // namespace contrastive::eval
