#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <map>
#include <span>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "contrastive/core/digest.h"
#include "contrastive/core/error.h"
#include "contrastive/core/random.h"
#include "contrastive/image/image.h"

#include "tests/unit/image/image_fixtures.h"

namespace contrastive::image {
namespace {

using Bytes = std::vector<uint8_t>;

const std::array kDamageable{"420.jpg",     "progressive.jpg", "grey.jpg",    "cmyk.jpg",   "rgba.png",
                             "palette.png", "bilevel.png",     "grey16.png",  "lossy.webp", "alpha.webp",
                             "palette.gif", "rgb.bmp",         "palette.bmp", "rgba.bmp"};

Bytes bytes_of(std::string_view text) {
  return {text.begin(), text.end()};
}

bool starts_like_an_image(const std::string& name, size_t size) {
  const std::map<std::string, size_t> magic_sizes{{"jpg", 3}, {"png", 8}, {"webp", 12}, {"gif", 6}, {"bmp", 2}};
  return size >= magic_sizes.at(name.substr(name.find('.') + 1));
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
  const std::string expected = "image: expected a JPEG, PNG, WebP, GIF or BMP, but ";
  EXPECT_EQ(message(""), expected + "there are no bytes");
  EXPECT_EQ(message(std::string_view("II*\0....", 8)), expected + "this is a TIFF (8 bytes)");
  EXPECT_EQ(message("<!DOCTYPE html>"), expected + "this is an HTML or XML text (15 bytes)");
  EXPECT_EQ(message("\x01\x02"), expected + "this starts with 01 02 (2 bytes)");
  EXPECT_EQ(message("RIFFxxxxWAVEfmt "), expected + "this starts with 52 49 46 46 78 78 78 78 (16 bytes)");
}

/// A GIF of one frame: claims its size, then gives `data`.
Bytes gif_claiming(uint16_t width, uint16_t height, const Bytes& data) {
  auto gif = bytes_of("GIF87a");
  const auto append_size = [&] {
    for (const auto side : {width, height}) {
      gif.push_back(static_cast<uint8_t>(side));
      gif.push_back(static_cast<uint8_t>(side >> 8));
    }
  };
  append_size();
  gif.insert(gif.end(), {0, 0, 0, ',', 0, 0, 0, 0});
  append_size();
  gif.push_back(0);
  gif.insert(gif.end(), data.begin(), data.end());
  return gif;
}

/// A fixture's BMP with another number of 32 bits at `offset`.
Bytes bmp_with(const std::string& name, size_t offset, uint32_t value) {
  auto bmp = fixture(name);
  for (size_t i = 0; i < 4; ++i) bmp.at(offset + i) = static_cast<uint8_t>(value >> (8 * i));
  return bmp;
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
  EXPECT_EQ(message(gif_claiming(65'535, 65'535, {8})),
            "image: GIF claims 65535 x 65535 pixels, the limit is 100000000 in all (max_pixels)");
  EXPECT_EQ(message(gif_claiming(9'999, 9'999, {8, 1, 0})), "image: GIF is truncated after 26 bytes");
  EXPECT_EQ(message(bmp_with("rgb.bmp", 18, 4'000'000'000U)),
            "image: BMP claims 4000000000 x 45 pixels, the limit is 100000000 in all (max_pixels)");
  EXPECT_EQ(message(bmp_with("rgb.bmp", 18, 1'000'000U)), "image: BMP is truncated after 8334 bytes");
}

TEST(DecodeTest, HonoursTheCallersLimit) {
  for (const std::string file : {"420.jpg", "rgba.png", "alpha.webp", "palette.gif", "rgb.bmp"}) {
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

TEST(DecodeTest, SurvivesRandomDamageOfManyBytes) {
  RandomStream random(11, RandomPurpose::crop, {1});
  for (const std::string name :
       {"part.gif", "grey.gif", "beyond_canvas.gif", "palette.bmp", "bits565.bmp", "rgba.bmp"}) {
    const auto whole = fixture(name);
    for (int i = 0; i < 3'000; ++i) {
      auto damaged = whole;
      for (auto left = 1 + random.below(12); left > 0; --left) {
        // Half of the damage goes to the headers.
        const auto reach = random.below(2) == 0 ? std::min<size_t>(whole.size(), 80) : whole.size();
        damaged[static_cast<size_t>(random.below(static_cast<int64_t>(reach)))] =
            static_cast<uint8_t>(random.below(256));
      }
      damaged.resize(whole.size() - static_cast<size_t>(random.below(static_cast<int64_t>(whole.size() / 4))));
      try {
        const auto image = decode_image(damaged, {.max_pixels = 200'000});
        ASSERT_LE(image.width * image.height, 200'000) << name << ", try " << i;
        ASSERT_EQ(static_cast<int64_t>(image.pixels.size()), image.width * image.height * bytes_per_pixel(image.mode));
        to_rgb(image);
      } catch (const DataError& error) {
        ASSERT_TRUE(std::string(error.what()).starts_with("image: ")) << error.what();
      }
    }
  }
}

TEST(DecodeTest, NamesWhatIsWrongWithAGif) {
  const auto message = [](const Bytes& bytes) { return error_of<DataError>([&] { decode_image(bytes); }); };
  EXPECT_EQ(message(gif_claiming(2, 2, {2, 1, 0x2F, 0})),
            "image: GIF of 27 bytes is damaged: a code that isn't defined yet");
  EXPECT_EQ(message(gif_claiming(2, 2, {9, 0})), "image: GIF of 25 bytes is damaged: codes of 9 bits");
  EXPECT_EQ(message(gif_claiming(0, 2, {2, 0})), "image: GIF claims 0 x 2 pixels");
  EXPECT_EQ(message(bytes_of(std::string_view("GIF89a\1\0\1\0\0\0\0;", 14))),
            "image: GIF of 14 bytes is damaged: it has no frame");
  // Clear, one pixel, end: three of four pixels are missing.
  EXPECT_EQ(message(gif_claiming(2, 2, {2, 2, 0x44, 0x01, 0})), "image: GIF is truncated after 28 bytes");
}

TEST(DecodeTest, NamesWhatIsWrongWithABmp) {
  const auto message = [](const Bytes& bytes) { return error_of<DataError>([&] { decode_image(bytes); }); };
  EXPECT_EQ(message(bmp_with("rgb.bmp", 14, 41)), "image: BMP of 8334 bytes is damaged: a header of 41 bytes");
  EXPECT_EQ(message(bmp_with("rgb.bmp", 26, 1 | 23U << 16)), "image: BMP of 8334 bytes is damaged: pixels of 23 bits");
  EXPECT_EQ(message(bmp_with("palette.bmp", 30, 1)), "image: BMP is compressed (method 1), expected plain pixels");
  EXPECT_EQ(message(bmp_with("palette.bmp", 46, 70'000)), "image: BMP of 3734 bytes is damaged: a palette of 70000");
  EXPECT_EQ(message(bmp_with("bits565.bmp", 54, 0xFF00)),
            "image: BMP has 16 bits with the masks FF00 7E0 1F 0, which are not supported");
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
