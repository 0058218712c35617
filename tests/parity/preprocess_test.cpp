// Against open_clip 3.3.0, torchvision 0.26.0 and Pillow 13.0.0; every size and count comes from the manifest.

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "contrastive/core/digest.h"
#include "contrastive/core/error.h"
#include "contrastive/image/image.h"
#include "contrastive/image/resize.h"
#include "contrastive/image/transform.h"

#include "tests/support/paths.h"
#include "tests/unit/image/image_fixtures.h"

namespace contrastive::image {
namespace {

using nlohmann::json;

std::vector<uint8_t> read_file(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw std::runtime_error("can't open " + path.string());
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

/// Says where and by how much two RGB images differ; empty if they are equal.
std::string difference(const Image& actual, const Image& expected) {
  if (actual.width != expected.width || actual.height != expected.height || actual.mode != expected.mode) {
    return std::to_string(actual.width) + " x " + std::to_string(actual.height) + " instead of " +
           std::to_string(expected.width) + " x " + std::to_string(expected.height) + ", or another mode";
  }
  int largest = 0;
  size_t unequal = 0;
  for (size_t i = 0; i < actual.pixels.size(); ++i) {
    const int distance = std::abs(actual.pixels[i] - expected.pixels[i]);
    largest = std::max(largest, distance);
    unequal += distance != 0 ? 1 : 0;
  }
  if (unequal == 0) return {};
  return std::to_string(unequal) + " of " + std::to_string(actual.pixels.size()) + " values differ, by up to " +
         std::to_string(largest);
}

class PreprocessParityTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto fixtures = test::fixtures_dir();
    if (!fixtures || !std::filesystem::exists(*fixtures / "preprocess" / "manifest.json")) {
      GTEST_SKIP() << "no fixtures of the reference libraries";
    }
    folder_ = *fixtures / "preprocess";
    manifest_ = json::parse(std::ifstream(folder_ / "manifest.json"));
  }

  std::vector<uint8_t> bytes(const std::string& file) const { return read_file(folder_ / file); }
  Image load(const std::string& file) const { return decode_image(bytes(file)); }

  PreprocessSpec spec(const json& row) const {
    PreprocessSpec result;
    result.size = row.at("size");
    const std::string interpolation = row.value("interpolation", manifest_.at("interpolation"));
    static const std::map<std::string, Interpolation> kInterpolations{{"nearest", Interpolation::nearest},
                                                                      {"bilinear", Interpolation::bilinear},
                                                                      {"bicubic", Interpolation::bicubic}};
    result.interpolation = kInterpolations.at(interpolation);
    static const std::map<std::string, ResizeMode> kModes{
        {"shortest", ResizeMode::shortest}, {"longest", ResizeMode::longest}, {"squash", ResizeMode::squash}};
    result.resize_mode = kModes.at(row.value("resize_mode", manifest_.at("resize_mode")));
    result.fill_color = row.value("fill_color", uint8_t{0});
    return result;
  }

  std::filesystem::path folder_;
  json manifest_;
};

TEST_F(PreprocessParityTest, DecodesToTheSameModeAndRgbBytes) {
  for (const auto& row : manifest_.at("images")) {
    const std::string file = row.at("file");
    SCOPED_TRACE(file);
    const auto image = load(file);
    EXPECT_EQ(mode_name(image.mode), row.at("mode"));
    EXPECT_EQ(image.width, row.at("width"));
    EXPECT_EQ(image.height, row.at("height"));
    EXPECT_EQ(sha256_hex(to_rgb(image).pixels), row.at("rgb_sha256"));
    const auto info = read_image_info(bytes(file));
    EXPECT_EQ(info.width, row.at("width"));
    EXPECT_EQ(info.height, row.at("height"));
  }
}

TEST_F(PreprocessParityTest, PreprocessesForEvaluationByteForByte) {
  for (const auto& row : manifest_.at("images")) {
    const std::string file = row.at("file");
    SCOPED_TRACE(file);
    const auto own_mode = preprocess_for_evaluation(load(file), spec(row));
    EXPECT_EQ(difference(own_mode, load(row.at("expected"))), "");
    EXPECT_EQ(sha256_hex(own_mode.pixels), row.at("expected_sha256"));
    const auto rgb_first = preprocess_for_evaluation(to_rgb(load(file)), spec(row));
    EXPECT_EQ(difference(rgb_first, load(row.at("rgb_first"))), "");
    EXPECT_EQ(sha256_hex(rgb_first.pixels), row.at("rgb_first_sha256"));
  }
}

TEST_F(PreprocessParityTest, HonoursResizeModeAndInterpolation) {
  for (const auto& row : manifest_.at("variants")) {
    SCOPED_TRACE(row.dump());
    const auto square = preprocess_for_evaluation(to_rgb(load(row.at("file"))), spec(row));
    EXPECT_EQ(difference(square, load(row.at("expected"))), "");
  }
}

TEST_F(PreprocessParityTest, CropsBeforeItResizes) {
  for (const auto& row : manifest_.at("crops")) {
    SCOPED_TRACE(row.dump());
    const Box box{row.at("left"), row.at("top"), row.at("width"), row.at("height")};
    const int64_t size = row.at("size");
    const auto square = resize(crop(to_rgb(load(row.at("file"))), box), size, size, Interpolation::bicubic);
    EXPECT_EQ(difference(square, load(row.at("expected"))), "");
  }
}

TEST_F(PreprocessParityTest, KeepsThePixelsOfTheNormalisedTensor) {
  const auto file = read_file(folder_ / "normalised.safetensors");
  uint64_t header_size = 0;
  std::memcpy(&header_size, file.data(), sizeof(header_size));
  const auto header = json::parse(file.begin() + 8, file.begin() + 8 + static_cast<int64_t>(header_size));
  const uint8_t* data = file.data() + 8 + header_size;
  const uint8_t* pixels = data + header.at("pixels").at("data_offsets").at(0).get<size_t>();
  const uint8_t* tensor = data + header.at("tensor").at("data_offsets").at(0).get<size_t>();
  const std::vector<int64_t> shape = header.at("pixels").at("shape");
  const auto plane = static_cast<size_t>(shape.at(0) * shape.at(1));
  const PreprocessSpec spec;
  for (size_t c = 0; c < 3; ++c) {
    EXPECT_FLOAT_EQ(spec.mean.at(c), manifest_.at("mean").at(c).get<float>());
    EXPECT_FLOAT_EQ(spec.std.at(c), manifest_.at("std").at(c).get<float>());
    for (size_t i = 0; i < plane; ++i) {
      float expected = 0;
      std::memcpy(&expected, tensor + (c * plane + i) * sizeof(float), sizeof(float));
      const float value = (static_cast<float>(pixels[i * 3 + c]) / 255.0F - spec.mean.at(c)) / spec.std.at(c);
      ASSERT_NEAR(value, expected, 1e-6) << "channel " << c << ", pixel " << i;
    }
  }
}

/// The largest distance between the distribution functions of two samples (Kolmogorov and Smirnov).
double distribution_distance(std::vector<double> a, std::vector<double> b) {
  std::sort(a.begin(), a.end());
  std::sort(b.begin(), b.end());
  double largest = 0;
  const auto share_up_to = [](const std::vector<double>& sample, double value) {
    const auto end = std::upper_bound(sample.begin(), sample.end(), value);
    return static_cast<double>(end - sample.begin()) / static_cast<double>(sample.size());
  };
  for (const auto* sample : {&a, &b}) {
    for (const double value : *sample) {
      largest = std::max(largest, std::abs(share_up_to(a, value) - share_up_to(b, value)));
    }
  }
  return largest;
}

/// Distances above this happen by chance once in 10,000 times.
double critical_distance(size_t a, size_t b) {
  const double n = static_cast<double>(a);
  const double m = static_cast<double>(b);
  return std::sqrt(-std::log(0.5e-4) / 2.0) * std::sqrt((n + m) / (n * m));
}

TEST_F(PreprocessParityTest, DrawsTrainCropsOfTheSameDistribution) {
  const std::vector<std::pair<const char*, std::function<double(const Box&)>>> statistics{
      {"left", [](const Box& box) { return static_cast<double>(box.left); }},
      {"top", [](const Box& box) { return static_cast<double>(box.top); }},
      {"width", [](const Box& box) { return static_cast<double>(box.width); }},
      {"height", [](const Box& box) { return static_cast<double>(box.height); }},
      {"area", [](const Box& box) { return static_cast<double>(box.width * box.height); }},
      {"aspect", [](const Box& box) { return static_cast<double>(box.width) / static_cast<double>(box.height); }},
  };
  const auto& reference = manifest_.at("random_resized_crop");
  TrainCropOptions options;
  options.scale_min = reference.at("scale").at(0);
  options.scale_max = reference.at("scale").at(1);
  size_t next = 0;
  for (const auto& [width, height, count] : reference.at("sizes_wh").get<std::vector<std::array<int64_t, 3>>>()) {
    std::vector<Box> expected;
    for (int64_t i = 0; i < count; ++i, ++next) {
      const std::array<int64_t, 4> box = reference.at("boxes_top_left_h_w").at(next);
      expected.push_back({box[1], box[0], box[3], box[2]});
    }
    std::vector<Box> actual;
    for (int64_t i = 0; i < 4000; ++i) {
      RandomStream random(17, RandomPurpose::crop, {width, height, i});
      actual.push_back(draw_train_crop(width, height, options, random));
    }
    for (const auto& [name, statistic] : statistics) {
      std::vector<double> a;
      std::vector<double> b;
      std::transform(actual.begin(), actual.end(), std::back_inserter(a), statistic);
      std::transform(expected.begin(), expected.end(), std::back_inserter(b), statistic);
      EXPECT_LT(distribution_distance(a, b), critical_distance(a.size(), b.size()))
          << name << " of crops of " << width << " x " << height << ", seed 17";
    }
  }
  EXPECT_EQ(next, reference.at("boxes_top_left_h_w").size());
}

}  // namespace
}  // namespace contrastive::image
