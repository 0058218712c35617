#include "contrastive/image/resize.h"

#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "contrastive/core/digest.h"
#include "contrastive/core/error.h"

#include "tests/unit/image/image_fixtures.h"

namespace contrastive::image {
namespace {

Interpolation interpolation_of(const std::string& name) {
  if (name == "nearest") return Interpolation::nearest;
  return name == "bilinear" ? Interpolation::bilinear : Interpolation::bicubic;
}

/// The red channel of an RGB image.
Image red_of(const Image& rgb) {
  Image red{rgb.width, rgb.height, PixelMode::grey, {}, {}};
  for (size_t i = 0; i < rgb.pixels.size(); i += 3) red.pixels.push_back(rgb.pixels[i]);
  return red;
}

TEST(ResizeTest, EqualsPillowInEveryMode) {
  for (const auto& row : fixture_rows()) {
    const auto image = decode_image(fixture(row.at("file")));
    for (const auto& target : row.at("resized")) {
      const auto resized =
          resize(image, target.at("width"), target.at("height"), interpolation_of(target.at("interpolation")));
      EXPECT_EQ(resized.mode, image.mode);
      EXPECT_EQ(sha256_hex(resized.pixels), target.at("sha256")) << row.at("file") << " " << target;
    }
  }
}

TEST(ResizeTest, TreatsChannelsAlikeAtManySizes) {
  for (int64_t width = 1; width < 90; width += 8) {
    const auto image = pattern(width, 23);
    for (const int64_t target : {1, 2, 7, 21, 22, 40, 64, 65, 66, 67, 131}) {
      const auto colour = resize(image, target, 15, Interpolation::bicubic);
      const auto grey = resize(red_of(image), target, 15, Interpolation::bicubic);
      EXPECT_EQ(red_of(colour).pixels, grey.pixels) << width << " to " << target;
    }
  }
}

TEST(ResizeTest, KeepsAConstantImageConstant) {
  for (const int value : {0, 1, 128, 254, 255}) {
    const Image image{31, 17, PixelMode::rgb, std::vector<uint8_t>(31 * 17 * 3, static_cast<uint8_t>(value)), {}};
    for (const int64_t size : {3, 17, 64, 200}) {
      const auto resized = resize(image, size, size, Interpolation::bicubic);
      EXPECT_EQ(resized.pixels,
                std::vector<uint8_t>(static_cast<size_t>(size * size * 3), static_cast<uint8_t>(value)));
    }
  }
}

TEST(ResizeTest, KeepsThePaletteWithTheIndices) {
  const auto image = decode_image(fixture("palette.png"));
  const auto resized = resize(image, 10, 10, Interpolation::bicubic);
  EXPECT_EQ(resized.palette, image.palette);
}

TEST(ResizeTest, ReturnsTheSameImageAtItsOwnSize) {
  const auto image = decode_image(fixture("rgba.png"));
  EXPECT_EQ(resize(image, image.width, image.height, Interpolation::bicubic).pixels, image.pixels);
}

TEST(ResizeTest, RefusesEmptySides) {
  EXPECT_EQ(error_of<Error>([] { resize(pattern(5, 4), 0, 3, Interpolation::bicubic); }),
            "[resize] 5 x 4 to 0 x 3: sides must be at least 1");
}

TEST(CropTest, CutsTheBox) {
  const auto image = pattern(5, 4);
  const auto part = crop(image, {1, 2, 3, 2});
  ASSERT_EQ(part.width, 3);
  ASSERT_EQ(part.height, 2);
  for (int64_t y = 0; y < 2; ++y) {
    EXPECT_EQ(std::vector<uint8_t>(part.row(y), part.row(y) + 9),
              std::vector<uint8_t>(image.row(y + 2) + 3, image.row(y + 2) + 12));
  }
}

TEST(CropTest, RefusesABoxOutsideTheImage) {
  const auto image = pattern(5, 4);
  EXPECT_EQ(error_of<Error>([&] {
              crop(image, {3, 0, 3, 1});
            }),
            "[crop] box of 3 x 1 at column 3, row 0 is not inside the 5 x 4 image");
  for (const Box& box : {Box{-1, 0, 1, 1}, Box{0, 4, 1, 1}, Box{0, 0, 0, 1}, Box{0, 0, 1, 5}}) {
    EXPECT_THROW(crop(image, box), Error);
  }
}

}  // namespace
}  // namespace contrastive::image
