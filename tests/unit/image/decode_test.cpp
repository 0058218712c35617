#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "contrastive/core/digest.h"
#include "contrastive/core/error.h"
#include "contrastive/image/image.h"

#include "tests/unit/image/image_fixtures.h"

namespace contrastive::image {
namespace {

using Bytes = std::vector<uint8_t>;

const std::array kDamageable{"420.jpg",     "progressive.jpg", "grey.jpg",   "cmyk.jpg",   "rgba.png",
                             "palette.png", "bilevel.png",     "grey16.png", "lossy.webp", "alpha.webp"};

Bytes bytes_of(std::string_view text) {
  return {text.begin(), text.end()};
}

bool starts_like_an_image(const std::string& name, size_t size) {
  return size >= (name.ends_with(".jpg") ? 3U : name.ends_with(".png") ? 8U : 12U);
}

void append_big_endian(Bytes& out, uint32_t value, int count) {
  for (int shift = 8 * (count - 1); shift >= 0; shift -= 8) out.push_back(static_cast<uint8_t>(value >> shift));
}

/// The CRC-32 of the PNG specification, bit by bit.
uint32_t crc32(std::span<const uint8_t> bytes) {
  uint32_t crc = 0xFFFFFFFF;
  for (const uint8_t byte : bytes) {
    crc ^= byte;
    for (int i = 0; i < 8; ++i) crc = (crc & 1) != 0 ? crc >> 1 ^ 0xEDB88320 : crc >> 1;
  }
  return ~crc;
}

void append_png_chunk(Bytes& out, std::string_view kind, const Bytes& data) {
  append_big_endian(out, static_cast<uint32_t>(data.size()), 4);
  const auto begin = out.size();
  out.insert(out.end(), kind.begin(), kind.end());
  out.insert(out.end(), data.begin(), data.end());
  append_big_endian(out, crc32(std::span(out).subspan(begin)), 4);
}

Bytes png_claiming(uint32_t width, uint32_t height) {
  Bytes header;
  append_big_endian(header, width, 4);
  append_big_endian(header, height, 4);
  header.insert(header.end(), {8, 2, 0, 0, 0});
  auto png = bytes_of("\x89PNG\r\n\x1A\n");
  append_png_chunk(png, "IHDR", header);
  append_png_chunk(png, "IDAT", {0x78, 0x9C, 0x03, 0x00});
  return png;
}

/// A fixture's JPEG with another size in its frame header.
Bytes jpeg_claiming(uint32_t width, uint32_t height) {
  auto jpeg = fixture("420.jpg");
  constexpr std::array<uint8_t, 2> kStartOfFrame{0xFF, 0xC0};
  const auto marker = std::search(jpeg.begin(), jpeg.end(), kStartOfFrame.begin(), kStartOfFrame.end());
  Bytes size;
  append_big_endian(size, height, 2);
  append_big_endian(size, width, 2);
  std::copy(size.begin(), size.end(), marker + 5);
  return jpeg;
}

/// A lossless WebP header of the largest size, followed by nothing of use.
Bytes webp_of_largest_size() {
  auto webp = bytes_of(std::string_view("RIFF\x1E\0\0\0WEBPVP8L\x11\0\0\0\x2F\xFF\xFF\xFF\x0F", 25));
  webp.resize(38);
  return webp;
}

TEST(DecodeTest, DecodesEveryModeAsPillowDoes) {
  for (const auto& row : fixture_rows()) {
    const std::string file = row.at("file");
    SCOPED_TRACE(file);
    const auto image = decode_image(fixture(file));
    EXPECT_EQ(mode_name(image.mode), row.at("mode"));
    EXPECT_EQ(image.width, row.at("width"));
    EXPECT_EQ(image.height, row.at("height"));
    EXPECT_EQ(static_cast<int64_t>(image.pixels.size()), image.width * image.height * bytes_per_pixel(image.mode));
    EXPECT_EQ(sha256_hex(to_rgb(image).pixels), row.at("rgb_sha256"));
  }
}

TEST(DecodeTest, ReadsSizesFromHeaders) {
  for (const auto& row : fixture_rows()) {
    const auto info = read_image_info(fixture(row.at("file")));
    EXPECT_EQ(info.width, row.at("width")) << row.at("file");
    EXPECT_EQ(info.height, row.at("height")) << row.at("file");
  }
}

TEST(DecodeTest, SaysWhatAnUnknownFormatIs) {
  const auto message = [](std::string_view text) { return error_of<DataError>([&] { decode_image(bytes_of(text)); }); };
  EXPECT_EQ(message(""), "image: expected a JPEG, PNG or WebP, but there are no bytes");
  EXPECT_EQ(message("GIF89a..."), "image: expected a JPEG, PNG or WebP, but this is a GIF (9 bytes)");
  EXPECT_EQ(message("<!DOCTYPE html>"),
            "image: expected a JPEG, PNG or WebP, but this is an HTML or XML text (15 bytes)");
  EXPECT_EQ(message("\x01\x02"), "image: expected a JPEG, PNG or WebP, but this starts with 01 02 (2 bytes)");
  EXPECT_EQ(message("RIFFxxxxWAVEfmt "),
            "image: expected a JPEG, PNG or WebP, but this starts with 52 49 46 46 78 78 78 78 (16 bytes)");
}

TEST(DecodeTest, RefusesHugeHeadersBeforeTakingMemory) {
  const auto message = [](const Bytes& bytes) { return error_of<DataError>([&] { decode_image(bytes); }); };
  EXPECT_EQ(message(png_claiming(100'000, 100'000)),
            "image: PNG claims 100000 x 100000 pixels, the limit is 100000000 in all (max_pixels)");
  EXPECT_EQ(message(png_claiming(0x7FFFFFFF, 0x7FFFFFFF)),
            "image: PNG claims 2147483647 x 2147483647 pixels, the limit is 100000000 in all (max_pixels)");
  EXPECT_EQ(message(png_claiming(20'000'000, 1)), "image: PNG claims 20000000 x 1 pixels, the limit is 1000000 a side");
  EXPECT_EQ(message(jpeg_claiming(65'500, 65'500)),
            "image: JPEG claims 65500 x 65500 pixels, the limit is 100000000 in all (max_pixels)");
  EXPECT_EQ(message(webp_of_largest_size()),
            "image: WebP claims 16384 x 16384 pixels, the limit is 100000000 in all (max_pixels)");
}

TEST(DecodeTest, HonoursTheCallersLimit) {
  for (const std::string file : {"420.jpg", "rgba.png", "alpha.webp"}) {
    const auto bytes = fixture(file);
    EXPECT_NO_THROW(decode_image(bytes, {.max_pixels = 61 * 45})) << file;
    EXPECT_THROW(decode_image(bytes, {.max_pixels = 61 * 45 - 1}), DataError) << file;
  }
}

TEST(DecodeTest, RefusesPngThatCannotHoldItsPixels) {
  EXPECT_EQ(error_of<DataError>([] { decode_image(png_claiming(9'000, 9'000)); }),
            "image: PNG is truncated: 49 bytes can't hold the 9000 x 9000 pixels of its header");
}

TEST(DecodeTest, ReportsTruncationAtEveryLength) {
  for (const std::string name : kDamageable) {
    const auto whole = fixture(name);
    const auto expected = decode_image(whole).pixels;
    for (size_t size = 0; size < whole.size(); ++size) {
      SCOPED_TRACE(name + " cut to " + std::to_string(size) + " of " + std::to_string(whole.size()));
      const auto prefix = std::span(whole).first(size);
      Image image;
      const auto message = error_of<DataError>([&] { image = decode_image(prefix); });
      // What follows the pixels may be missing, as PIL allows.
      if (message == "no error") {
        EXPECT_EQ(image.pixels, expected);
        EXPECT_GE(size + 20, whole.size());
      } else if (starts_like_an_image(name, size)) {
        EXPECT_NE(message.find("is truncated"), std::string::npos) << message;
      }
    }
  }
}

TEST(DecodeTest, SaysHowFarATruncatedJpegReaches) {
  const auto whole = fixture("420.jpg");
  EXPECT_EQ(error_of<DataError>([&] { decode_image(std::span(whole).first(100)); }),
            "image: JPEG is truncated: its 100 bytes end within the header");
  const auto message = error_of<DataError>([&] { decode_image(std::span(whole).first(whole.size() - 200)); });
  EXPECT_TRUE(message.ends_with(" of 45 rows")) << message;
}

TEST(DecodeTest, SurvivesEveryFlippedByteInSilence) {
  ::testing::internal::CaptureStderr();
  for (const std::string name : kDamageable) {
    const auto whole = fixture(name);
    for (size_t i = 0; i < whole.size(); ++i) {
      auto damaged = whole;
      damaged[i] ^= static_cast<uint8_t>(1U << (i % 8));
      try {
        const auto image = decode_image(damaged, {.max_pixels = 200'000});
        EXPECT_LE(image.width * image.height, 200'000);
        to_rgb(image);
      } catch (const DataError& error) {
        EXPECT_TRUE(std::string(error.what()).starts_with("image: ")) << error.what();
      }
    }
  }
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");
}

TEST(DecodeTest, RefusesJpegWithEndlessScans) {
  const auto whole = fixture("progressive.jpg");
  constexpr std::array<uint8_t, 2> kStartOfScan{0xFF, 0xDA};
  const auto is_scan = [&](size_t i) { return std::equal(kStartOfScan.begin(), kStartOfScan.end(), &whole[i]); };
  size_t first = 0;
  while (!is_scan(first)) ++first;
  size_t second = first + 2;
  while (!is_scan(second)) ++second;
  Bytes bomb(whole.begin(), whole.begin() + static_cast<int64_t>(first));
  for (int i = 0; i < 600; ++i) {
    bomb.insert(bomb.end(), whole.begin() + static_cast<int64_t>(first), whole.begin() + static_cast<int64_t>(second));
  }
  bomb.insert(bomb.end(), whole.begin() + static_cast<int64_t>(second), whole.end());
  EXPECT_EQ(error_of<DataError>([&] { decode_image(bomb); }), "image: JPEG has more than 500 scans");
}

TEST(DecodeTest, RefusesAnimatedWebp) {
  // VP8X with the animation flag and a 4 x 3 canvas, then ANIM.
  const auto webp =
      bytes_of(std::string_view("RIFF\x28\0\0\0WEBPVP8X\x0A\0\0\0\x02\0\0\0\x03\0\0\x02\0\0"
                                "ANIM\x06\0\0\0\0\0\0\0\0\0ANMF",
                                48));
  EXPECT_EQ(error_of<DataError>([&] { decode_image(webp); }), "image: WebP is an animation, expected a still image");
}

TEST(ToRgbTest, FollowsPillowsRules) {
  const auto rgb_of = [](PixelMode mode, Bytes pixel, Bytes palette = {}) {
    return to_rgb(Image{1, 1, mode, std::move(pixel), std::move(palette)}).pixels;
  };
  const auto grey16 = [&](uint16_t value) {
    Bytes pixel(2);
    std::memcpy(pixel.data(), &value, 2);
    return rgb_of(PixelMode::grey16, pixel);
  };
  EXPECT_EQ(rgb_of(PixelMode::grey, {7}), (Bytes{7, 7, 7}));
  EXPECT_EQ(rgb_of(PixelMode::grey_alpha, {7, 0}), (Bytes{7, 7, 7}));
  EXPECT_EQ(rgb_of(PixelMode::bilevel, {255}), (Bytes{255, 255, 255}));
  EXPECT_EQ(rgb_of(PixelMode::rgba, {1, 2, 3, 0}), (Bytes{1, 2, 3}));
  EXPECT_EQ(rgb_of(PixelMode::palette, {1}, {1, 2, 3, 4, 5, 6}), (Bytes{4, 5, 6}));
  EXPECT_EQ(rgb_of(PixelMode::palette, {2}, {1, 2, 3, 4, 5, 6}), (Bytes{0, 0, 0}));
  EXPECT_EQ(grey16(200), (Bytes{200, 200, 200}));
  EXPECT_EQ(grey16(256), (Bytes{255, 255, 255}));
  EXPECT_EQ(rgb_of(PixelMode::cmyk, {0, 255, 51, 0}), (Bytes{255, 0, 204}));
  EXPECT_EQ(rgb_of(PixelMode::cmyk, {0, 0, 0, 255}), (Bytes{0, 0, 0}));
}

TEST(EncodeTest, PngKeepsEveryPixel) {
  const auto image = pattern(37, 19);
  const auto decoded = decode_image(encode_png(image));
  EXPECT_EQ(decoded.mode, PixelMode::rgb);
  EXPECT_EQ(decoded.width, 37);
  EXPECT_EQ(decoded.pixels, image.pixels);
}

TEST(EncodeTest, JpegStaysNearASmoothImage) {
  Image image{96, 80, PixelMode::rgb, {}, {}};
  for (int y = 0; y < 80; ++y) {
    for (int x = 0; x < 96; ++x) {
      for (const int value : {2 * x, 3 * y, x + y}) image.pixels.push_back(static_cast<uint8_t>(value));
    }
  }
  const auto mean_error = [&](int quality) {
    const auto decoded = decode_image(encode_jpeg(image, quality));
    EXPECT_EQ(decoded.pixels.size(), image.pixels.size());
    double sum = 0;
    for (size_t i = 0; i < image.pixels.size(); ++i) sum += std::abs(image.pixels[i] - decoded.pixels[i]);
    return sum / static_cast<double>(image.pixels.size());
  };
  EXPECT_LT(mean_error(95), 1.5);
  EXPECT_LT(mean_error(95), mean_error(20));
}

TEST(EncodeTest, RefusesWhatIsNotRgbOrNotAQuality) {
  const Image grey{1, 1, PixelMode::grey, {7}, {}};
  EXPECT_EQ(error_of<Error>([&] { encode_png(grey); }),
            "[encode_png] expected an RGB image with at least one pixel, but it is 1 x 1 with 1 bytes");
  EXPECT_THROW(encode_jpeg(grey, 90), Error);
  EXPECT_EQ(error_of<Error>([] { encode_jpeg(pattern(2, 2), 101); }),
            "[encode_jpeg] quality must be in [1, 100], but is 101");
}

TEST(EncodeTest, ReportsWhatJpegCannotHold) {
  EXPECT_EQ(error_of<Error>([] { encode_jpeg(pattern(70'000, 1), 90); }),
            "[encode_jpeg] 70000 x 1: Maximum supported image dimension is 65500 pixels");
}

}  // namespace
}  // namespace contrastive::image
