#include "contrastive/image/transform.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "contrastive/core/digest.h"
#include "contrastive/core/error.h"

#include "tests/support/errors.h"
#include "tests/unit/image/image_fixtures.h"

namespace contrastive::image {
namespace {

constexpr uint64_t kSeed = 29;

RandomStream stream(int64_t counter) {
  return RandomStream(kSeed, RandomPurpose::crop, {counter});
}

/// An image whose red channel is the column and whose green channel is the row.
Image coordinates(int64_t width, int64_t height) {
  Image image{width, height, PixelMode::rgb, {}, {}};
  for (int64_t y = 0; y < height; ++y) {
    for (int64_t x = 0; x < width; ++x) {
      for (const int64_t value : {x, y, int64_t{0}}) image.pixels.push_back(static_cast<uint8_t>(value));
    }
  }
  return image;
}

std::vector<uint8_t> training_square(const Image& image, int64_t size, const TrainCropOptions& options, int64_t draw) {
  std::vector<uint8_t> out(static_cast<size_t>(size * size * 3));
  auto random = stream(draw);
  crop_for_training(image, size, options, random, out);
  return out;
}

std::vector<uint8_t> decoded_training_square(std::span<const uint8_t> bytes, int64_t size,
                                             const TrainCropOptions& options, int64_t draw) {
  std::vector<uint8_t> out(static_cast<size_t>(size * size * 3));
  auto random = stream(draw);
  decode_for_training(bytes, size, options, random, out);
  return out;
}

TEST(PreprocessTest, PutsTheCentreCropAtTheEvenHalf) {
  PreprocessSpec spec;
  spec.size = 4;
  for (const auto& [side, offset] :
       std::vector<std::pair<int64_t, int>>{{4, 0}, {5, 0}, {6, 1}, {7, 2}, {9, 2}, {11, 4}}) {
    const auto wide = preprocess_for_evaluation(coordinates(side, 4), spec);
    EXPECT_EQ(wide.pixels.at(0), offset) << "width " << side;
    EXPECT_EQ(wide.pixels.at(1), 0) << "width " << side;
    const auto tall = preprocess_for_evaluation(coordinates(4, side), spec);
    EXPECT_EQ(tall.pixels.at(0), 0) << "height " << side;
    EXPECT_EQ(tall.pixels.at(1), offset) << "height " << side;
  }
}

TEST(PreprocessTest, ACropFractionResizesToMoreThanTheSquare) {
  // 224 / 0.875 = 256, as torchvision's Resize(256) and CenterCrop(224).
  const auto image = decode_image(fixture("grey.jpg"));
  PreprocessSpec spec;
  spec.size = 28;
  spec.crop_fraction = 0.875;
  const auto shorter = std::min(image.width, image.height);
  const auto width = 32 * image.width / shorter, height = 32 * image.height / shorter;
  const auto halved = [](int64_t extra) { return extra % 4 == 3 ? extra / 2 + 1 : extra / 2; };
  const auto whole = to_rgb(resize(image, width, height, spec.interpolation));
  EXPECT_EQ(preprocess_for_evaluation(image, spec).pixels,
            crop(whole, {halved(width - 28), halved(height - 28), 28, 28}).pixels);
  spec.resize_mode = ResizeMode::squash;
  EXPECT_EQ(preprocess_for_evaluation(image, spec).pixels,
            crop(to_rgb(resize(image, 32, 32, spec.interpolation)), {2, 2, 28, 28}).pixels);
}

/// The formula in double, of one channel: half-pixel centres, four neighbours, cut off.
int two_tap_value(const Image& image, double column, double row, int64_t channel) {
  const auto clamped = [](double place, int64_t size) {
    return std::clamp<int64_t>(static_cast<int64_t>(place), 0, size - 1);
  };
  const auto value = [&](double x, double y) {
    return static_cast<double>(image.row(clamped(y, image.height))[clamped(x, image.width) * 3 + channel]);
  };
  const double x = std::floor(column), y = std::floor(row), share = column - x;
  const auto in_row = [&](double line) { return value(x, line) * (1 - share) + value(x + 1, line) * share; };
  return static_cast<int>(in_row(y) * (1 - (row - y)) + in_row(y + 1) * (row - y));
}

TEST(PreprocessTest, WithoutAntialiasFourNeighboursAreWeightedAndCutOff) {
  const auto image = coordinates(37, 21);
  const auto small = resize_without_antialias(image, 8, 5);
  for (int64_t y = 0; y < 5; ++y) {
    for (int64_t x = 0; x < 8; ++x) {
      const double column = (static_cast<double>(x) + 0.5) * 37 / 8 - 0.5;
      const double row = (static_cast<double>(y) + 0.5) * 21 / 5 - 0.5;
      EXPECT_EQ(small.row(y)[x * 3], two_tap_value(image, column, row, 0)) << x << ", " << y;
      EXPECT_EQ(small.row(y)[x * 3 + 1], two_tap_value(image, column, row, 1)) << x << ", " << y;
    }
  }
}

TEST(PreprocessTest, WithoutAntialiasSidesAreRoundedToEvenAndOffsetsDown) {
  PreprocessSpec spec;
  spec.size = 4;
  spec.interpolation = Interpolation::bilinear;
  spec.antialias = false;
  // 8 x 13 becomes 4 x 6 (6.5, halves to even), 8 x 15 becomes 4 x 8 (7.5); the crop starts at (6 - 4) / 2 and (8 - 4)
  // / 2.
  for (const auto& [side, resized, offset] :
       std::vector<std::array<int64_t, 3>>{{13, 6, 1}, {15, 8, 2}, {14, 7, 1}, {17, 8, 2}}) {
    const auto image = coordinates(8, side);
    EXPECT_EQ(preprocess_for_evaluation(image, spec).pixels,
              crop(resize_without_antialias(image, 4, resized), {0, offset, 4, 4}).pixels)
        << side;
  }
  spec.crop_fraction = 0.5;
  EXPECT_EQ(preprocess_for_evaluation(coordinates(16, 16), spec).pixels,
            crop(resize_without_antialias(coordinates(16, 16), 8, 8), {2, 2, 4, 4}).pixels);
}

TEST(PreprocessTest, RefusesSpecsThatDoNotFitTogether) {
  const auto message = [](const PreprocessSpec& spec) {
    return test::message_of([&] { preprocess_for_evaluation(coordinates(8, 8), spec); });
  };
  PreprocessSpec spec;
  spec.crop_fraction = 1.5;
  EXPECT_EQ(message(spec), "[preprocess_for_evaluation] crop_fraction must be in (0, 1], but is 1.5");
  spec.crop_fraction = 0.5;
  spec.resize_mode = ResizeMode::longest;
  EXPECT_NE(message(spec).find("need resize_mode shortest or squash"), std::string::npos);
  spec = {};
  spec.antialias = false;
  EXPECT_NE(message(spec).find("needs bilinear"), std::string::npos);
  Image grey{4, 4, PixelMode::grey, std::vector<uint8_t>(16), {}};
  EXPECT_NE(test::message_of([&] { resize_without_antialias(grey, 2, 2); }).find("must be RGB"), std::string::npos);
}

TEST(PreprocessTest, ComputesOnlyTheCropOfTheResizedImage) {
  PreprocessSpec spec;
  for (const auto& row : fixture_rows()) {
    const auto image = decode_image(fixture(row.at("file")));
    for (const int64_t size : {7, 32, 70}) {
      spec.size = size;
      const auto shorter = std::min(image.width, image.height);
      const auto width = image.width == shorter ? size : size * image.width / shorter;
      const auto height = image.height == shorter ? size : size * image.height / shorter;
      const auto whole = to_rgb(resize(image, width, height, spec.interpolation));
      const auto halved = [](int64_t extra) { return extra % 4 == 3 ? extra / 2 + 1 : extra / 2; };
      const auto expected = crop(whole, {halved(width - size), halved(height - size), size, size});
      EXPECT_EQ(preprocess_for_evaluation(image, spec).pixels, expected.pixels) << row.at("file") << ", " << size;
    }
  }
}

TEST(PreprocessTest, FillsAroundTheLongestSide) {
  PreprocessSpec spec;
  spec.size = 6;
  spec.resize_mode = ResizeMode::longest;
  spec.fill_color = 9;
  const Image white{12, 4, PixelMode::rgb, std::vector<uint8_t>(12 * 4 * 3, 255), {}};
  const auto square = preprocess_for_evaluation(white, spec);
  for (int64_t y = 0; y < 6; ++y) EXPECT_EQ(square.row(y)[0], y == 2 || y == 3 ? 255 : 9) << "row " << y;
}

TEST(PreprocessTest, HandlesExtremeShapesInEveryResizeMode) {
  PreprocessSpec spec;
  spec.size = 16;
  for (const auto mode : {ResizeMode::shortest, ResizeMode::longest, ResizeMode::squash}) {
    spec.resize_mode = mode;
    for (const auto& [width, height] : std::vector<std::pair<int64_t, int64_t>>{{1, 1}, {5000, 1}, {1, 5000}, {2, 3}}) {
      const auto square = preprocess_for_evaluation(pattern(width, height), spec);
      EXPECT_EQ(square.pixels.size(), 16U * 16U * 3U);
    }
  }
}

TEST(TrainCropTest, StaysInsideImagesOfEveryShape) {
  TrainCropOptions options;
  for (const double scale_min : {0.01, 0.9}) {
    options.scale_min = scale_min;
    for (const auto kind : {TrainCrop::random_resized, TrainCrop::random_square}) {
      options.kind = kind;
      for (const int64_t width : {1, 2, 3, 17, 224, 641, 10'000}) {
        for (const int64_t height : {1, 2, 5, 100, 480, 10'000}) {
          for (int64_t draw = 0; draw < 50; ++draw) {
            auto random = stream(draw);
            const auto box = draw_train_crop(width, height, options, random);
            ASSERT_TRUE(box.left >= 0 && box.top >= 0 && box.width >= 1 && box.height >= 1 &&
                        box.left + box.width <= width && box.top + box.height <= height)
                << box.width << " x " << box.height << " at " << box.left << ", " << box.top << " in " << width << " x "
                << height << ", seed " << kSeed;
          }
        }
      }
    }
  }
}

TEST(TrainCropTest, HonoursScaleAndAspect) {
  TrainCropOptions options;
  options.scale_min = 0.2;
  options.scale_max = 0.5;
  for (int64_t draw = 0; draw < 500; ++draw) {
    auto random = stream(draw);
    const auto box = draw_train_crop(1000, 1000, options, random);
    const double area = static_cast<double>(box.width * box.height) / 1e6;
    const double aspect = static_cast<double>(box.width) / static_cast<double>(box.height);
    EXPECT_TRUE(area > 0.198 && area < 0.502) << area;
    EXPECT_TRUE(aspect > 0.745 && aspect < 1.342) << aspect;
  }
}

TEST(TrainCropTest, FallsBackToTheCentreOfExtremeShapes) {
  auto random = stream(0);
  const auto tall = draw_train_crop(100, 1000, {}, random);
  EXPECT_EQ(std::vector<int64_t>({tall.left, tall.top, tall.width, tall.height}),
            std::vector<int64_t>({0, 433, 100, 133}));
  const auto wide = draw_train_crop(1000, 30, {}, random);
  EXPECT_EQ(std::vector<int64_t>({wide.left, wide.top, wide.width, wide.height}),
            std::vector<int64_t>({480, 0, 40, 30}));
}

TEST(TrainCropTest, RandomSquareReachesBothEnds) {
  std::set<int64_t> lefts;
  for (int64_t draw = 0; draw < 300; ++draw) {
    auto random = stream(draw);
    const auto box = draw_train_crop(20, 12, {.kind = TrainCrop::random_square}, random);
    EXPECT_EQ(box.width, 12);
    EXPECT_EQ(box.height, 12);
    lefts.insert(box.left);
  }
  EXPECT_EQ(lefts, (std::set<int64_t>{0, 1, 2, 3, 4, 5, 6, 7, 8}));
}

TEST(TrainCropTest, RefusesAnEmptyImage) {
  auto random = stream(0);
  EXPECT_EQ(error_of<Error>([&] { draw_train_crop(0, 5, {}, random); }),
            "[draw_train_crop] sides must be at least 1, but the image is 0 x 5");
}

TEST(TrainingPixelsTest, EqualPillowsCropAndResize) {
  for (const auto& row : fixture_rows()) {
    const auto rgb = to_rgb(decode_image(fixture(row.at("file"))));
    for (const auto& target : row.at("rgb_first_crops")) {
      const int64_t size = target.at("size");
      const auto part = crop(rgb, {target.at("left"), target.at("top"), target.at("width"), target.at("height")});
      EXPECT_EQ(sha256_hex(resize(part, size, size, Interpolation::bicubic).pixels), target.at("sha256"))
          << row.at("file") << " " << target;
    }
  }
}

TEST(TrainingPixelsTest, EqualCropThenResizeOfTheWholeImage) {
  const TrainCropOptions options{.kind = TrainCrop::random_resized, .scale_min = 0.05, .scale_max = 1.0};
  for (const auto& row : fixture_rows()) {
    const auto image = decode_image(fixture(row.at("file")));
    for (int64_t draw = 0; draw < 40; ++draw) {
      auto random = stream(draw);
      const auto box = draw_train_crop(image.width, image.height, options, random);
      const auto expected = resize(crop(to_rgb(image), box), 33, 33, Interpolation::bicubic);
      EXPECT_EQ(training_square(image, 33, options, draw), expected.pixels) << row.at("file") << ", draw " << draw;
    }
  }
}

TEST(TrainingPixelsTest, DoNotDependOnHowMuchIsDecoded) {
  for (const double scale_min : {0.02, 0.9}) {
    const TrainCropOptions options{.kind = TrainCrop::random_resized, .scale_min = scale_min, .scale_max = 1.0};
    for (const auto& row : fixture_rows()) {
      const auto bytes = fixture(row.at("file"));
      const auto image = decode_image(bytes);
      for (int64_t draw = 0; draw < 60; ++draw) {
        EXPECT_EQ(decoded_training_square(bytes, 20, options, draw), training_square(image, 20, options, draw))
            << row.at("file") << ", draw " << draw << ", seed " << kSeed;
      }
    }
  }
}

TEST(TrainingPixelsTest, AreTheSameOnEveryThread) {
  const auto bytes = fixture("420.jpg");
  std::vector<std::vector<uint8_t>> expected;
  for (int64_t draw = 0; draw < 30; ++draw) expected.push_back(decoded_training_square(bytes, 50, {}, draw));
  std::vector<std::vector<std::vector<uint8_t>>> actual(3);
  std::vector<std::thread> threads;
  for (auto& squares : actual) {
    threads.emplace_back([&squares, &bytes] {
      for (int64_t draw = 0; draw < 30; ++draw) squares.push_back(decoded_training_square(bytes, 50, {}, draw));
    });
  }
  for (auto& thread : threads) thread.join();
  for (const auto& squares : actual) EXPECT_EQ(squares, expected);
}

TEST(TrainingPixelsTest, ATruncatedFileFailsWhateverTheCrop) {
  const TrainCropOptions options{.kind = TrainCrop::random_resized, .scale_min = 0.01, .scale_max = 0.05};
  for (const std::string name : {"420.jpg", "progressive.jpg", "grey.jpg", "cmyk.jpg", "rgba.png", "lossy.webp"}) {
    const auto whole = fixture(name);
    for (int64_t draw = 0; draw < 20; ++draw) {
      const auto cut = std::span(whole).first(whole.size() - 60);
      const auto message = error_of<DataError>([&] { decoded_training_square(cut, 8, options, draw); });
      EXPECT_NE(message.find("is truncated"), std::string::npos) << name << ", draw " << draw << ": " << message;
    }
  }
}

TEST(TrainingPixelsTest, RefuseDamagedFilesAndHugeOnes) {
  const std::vector<uint8_t> empty;
  EXPECT_THROW(decoded_training_square(empty, 8, {}, 0), DataError);
  std::vector<uint8_t> out(8 * 8 * 3);
  auto random = stream(0);
  EXPECT_EQ(
      error_of<DataError>([&] { decode_for_training(fixture("420.jpg"), 8, {}, random, out, {.max_pixels = 1000}); }),
      "image: JPEG claims 61 x 45 pixels, the limit is 1000 in all (max_pixels)");
}

TEST(TrainingPixelsTest, RefuseAnOutputOfAnotherSize) {
  std::vector<uint8_t> out(100);
  auto random = stream(0);
  EXPECT_EQ(error_of<Error>([&] { crop_for_training(pattern(9, 9), 8, {}, random, out); }),
            "[crop_for_training] out must hold 8 x 8 x 3 = 192 bytes, but holds 100");
}

}  // namespace
}  // namespace contrastive::image
