#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "contrastive/core/digest.h"
#include "contrastive/core/error.h"
#include "contrastive/image/transform.h"

#include "tests/unit/image/image_fixtures.h"

namespace contrastive::image {
namespace {

constexpr TrainCropOptions kSquare{.kind = TrainCrop::random_square};
constexpr TrainCropOptions kScaledSquare{.kind = TrainCrop::random_square, .jpeg_scaling = JpegScaling::dct};

RandomStream stream(int64_t draw) {
  return RandomStream(31, RandomPurpose::crop, {draw});
}

std::vector<uint8_t> square(std::span<const uint8_t> bytes, int64_t size, const TrainCropOptions& options,
                            int64_t draw = 0) {
  std::vector<uint8_t> out(static_cast<size_t>(size * size * 3));
  auto random = stream(draw);
  decode_for_training(bytes, size, options, random, out);
  return out;
}

/// Smooth gradients with waves of ever shorter length.
Image smooth_with_detail(int64_t width, int64_t height) {
  Image image{width, height, PixelMode::rgb, {}, {}};
  for (int64_t y = 0; y < height; ++y) {
    for (int64_t x = 0; x < width; ++x) {
      const double u = static_cast<double>(x) / static_cast<double>(width);
      const double v = static_cast<double>(y) / static_cast<double>(height);
      const double wave = 30 * std::sin(60 * u * u + 25 * v) + 12 * std::sin(140 * u * v);
      for (const double value : {60 + 120 * u + wave, 80 + 100 * v - wave, 128 + 0.5 * wave}) {
        image.pixels.push_back(static_cast<uint8_t>(std::clamp(value, 0.0, 255.0)));
      }
    }
  }
  return image;
}

double psnr(const std::vector<uint8_t>& a, const std::vector<uint8_t>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
  if (sum == 0) return std::numeric_limits<double>::infinity();
  return 10 * std::log10(255.0 * 255.0 * static_cast<double>(a.size()) / sum);
}

nlohmann::json manifest() {
  return nlohmann::json::parse(fixture("jpeg/manifest.json"));
}

std::vector<uint8_t> jpeg_fixture(const nlohmann::json& row) {
  return fixture("jpeg/" + row.at("file").get<std::string>());
}

TEST(JpegScalingTest, EqualsPillowsDraftAndResizeOfTheFractionalBox) {
  std::map<std::tuple<std::string, int64_t, int64_t>, std::string> expected;
  std::map<std::string, std::vector<uint8_t>> files;
  for (const auto& row : manifest().at("scaled")) {
    expected[{row.at("file"), row.at("size"), row.at("left")}] = row.at("sha256");
    files[row.at("file")] = jpeg_fixture(row);
  }
  for (const auto& [name, bytes] : files) {
    const auto info = read_image_info(bytes);
    for (const int64_t size : {12, 6, 3}) {
      for (int64_t draw = 0; draw < 40; ++draw) {
        auto random = stream(draw);
        const auto left = draw_train_crop(info.width, info.height, kSquare, random).left;
        EXPECT_EQ(sha256_hex(square(bytes, size, kScaledSquare, draw)), expected.at({name, size, left}))
            << name << " to " << size << ", column " << left;
      }
    }
  }
}

TEST(JpegScalingTest, IsOffUnlessAsked) {
  EXPECT_EQ(TrainCropOptions{}.jpeg_scaling, JpegScaling::none);
  const auto bytes = fixture("jpeg/444.jpg");
  auto random = stream(0);
  const auto box = draw_train_crop(61, 45, kSquare, random);
  const auto exact = resize(crop(decode_image(bytes), box), 3, 3, Interpolation::bicubic);
  EXPECT_EQ(square(bytes, 3, kSquare), exact.pixels);
  EXPECT_NE(square(bytes, 3, kScaledSquare), exact.pixels);
}

TEST(JpegScalingTest, LeavesTheCropTheSideThatWasAskedFor) {
  const auto bytes = fixture("jpeg/444.jpg");  // the square has 45 pixels a side, half of it 22.5
  auto options = kScaledSquare;
  EXPECT_EQ(square(bytes, 16, options), square(bytes, 16, kSquare));  // 16 x 1.5 = 24
  EXPECT_NE(square(bytes, 15, options), square(bytes, 15, kSquare));  // 15 x 1.5 = 22.5
  options.jpeg_scaling_ratio = 1.0;
  EXPECT_NE(square(bytes, 22, options), square(bytes, 22, kSquare));
  EXPECT_EQ(square(bytes, 23, options), square(bytes, 23, kSquare));
}

TEST(JpegScalingTest, StaysCloseToTheExactPixels) {
  const auto bytes = encode_jpeg(smooth_with_detail(1000, 760), 90);
  for (const int64_t size : {224, 112, 56}) {
    for (int64_t draw = 0; draw < 5; ++draw) {
      const auto exact = square(bytes, size, {}, draw);
      auto options = TrainCropOptions{.jpeg_scaling = JpegScaling::dct};
      EXPECT_GT(psnr(square(bytes, size, options, draw), exact), 44) << size << ", draw " << draw;
      options.jpeg_scaling_ratio = 1.0;
      EXPECT_GT(psnr(square(bytes, size, options, draw), exact), 38) << size << ", draw " << draw;
    }
  }
}

TEST(JpegScalingTest, OtherFilesAndModesStayExact) {
  for (const auto& row : fixture_rows()) {
    const auto bytes = fixture(row.at("file"));
    const auto name = row.at("file").get<std::string>();
    if (name.ends_with(".jpg") && name != "cmyk.jpg") continue;
    EXPECT_EQ(square(bytes, 2, kScaledSquare), square(bytes, 2, kSquare)) << name;
  }
}

TEST(JpegScalingTest, TakesEverySizeDownToOnePixel) {
  for (const auto& [width, height] : std::vector<std::pair<int64_t, int64_t>>{
           {1, 1}, {2, 1}, {1, 9}, {7, 8}, {9, 17}, {33, 31}, {65, 15}, {16, 127}}) {
    const auto bytes = encode_jpeg(smooth_with_detail(width, height), 90);
    for (int64_t draw = 0; draw < 30; ++draw) {
      TrainCropOptions options{.scale_min = 0.1, .jpeg_scaling = JpegScaling::dct, .jpeg_scaling_ratio = 1.0};
      for (const int64_t size : {1, 2, 3}) {
        const auto scaled = square(bytes, size, options, draw);
        options.jpeg_scaling = JpegScaling::none;
        EXPECT_GT(psnr(scaled, square(bytes, size, options, draw)), 15) << width << " x " << height << ", " << draw;
        options.jpeg_scaling = JpegScaling::dct;
      }
    }
  }
}

TEST(JpegScalingTest, DamageAndTruncationGiveTheSameErrors) {
  const auto error = [](std::span<const uint8_t> bytes, const TrainCropOptions& options) {
    return error_of<DataError>([&] { square(bytes, 3, options); });
  };
  for (const std::string name : {"444.jpg", "420.jpg", "progressive.jpg", "grey.jpg", "cmyk.jpg", "restarts.jpg"}) {
    const auto whole = fixture("jpeg/" + name);
    for (size_t length = 2; length + 2 < whole.size(); length += 1 + whole.size() / 150) {
      const auto cut = std::span(whole).first(length);
      const auto exact = error(cut, kSquare);
      EXPECT_NE(exact, "no error") << name << ", " << length;
      EXPECT_EQ(error(cut, kScaledSquare).substr(0, 40), exact.substr(0, 40)) << name << ", " << length;
    }
  }
}

TEST(JpegScalingTest, RefusesARatioBelowOne) {
  auto options = kScaledSquare;
  for (const double ratio : {0.99, -1.0, std::nan("")}) {
    options.jpeg_scaling_ratio = ratio;
    const auto message = error_of<Error>([&] { square(fixture("jpeg/444.jpg"), 3, options); });
    EXPECT_TRUE(message.starts_with("[decode_for_training] jpeg_scaling_ratio must be at least 1, but is")) << message;
  }
}

}  // namespace
}  // namespace contrastive::image
