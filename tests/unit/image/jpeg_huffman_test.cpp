#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "contrastive/core/digest.h"
#include "contrastive/core/error.h"
#include "contrastive/image/image.h"
#include "contrastive/image/transform.h"

#include "tests/unit/image/image_fixtures.h"

namespace contrastive::image {
namespace {

nlohmann::json manifest() {
  return nlohmann::json::parse(fixture("jpeg/manifest.json"));
}

std::vector<uint8_t> jpeg_fixture(const nlohmann::json& row) {
  return fixture("jpeg/" + row.at("file").get<std::string>());
}

std::string rgb_digest(std::span<const uint8_t> bytes) {
  return sha256_hex(to_rgb(decode_image(bytes)).pixels);
}

TEST(JpegHuffmanTest, EveryTableSamplingAndRestartIntervalGivesPillowsPixels) {
  for (const auto& row : manifest().at("files")) {
    EXPECT_EQ(rgb_digest(jpeg_fixture(row)), row.at("rgb_sha256")) << row.at("file");
  }
}

TEST(JpegHuffmanTest, TablesOfAnEarlierImageAreNotTakenForOnesThatDiffer) {
  const auto rows = manifest().at("files");
  for (const auto& first : rows) {
    for (const auto& second : rows) {
      rgb_digest(jpeg_fixture(first));
      EXPECT_EQ(rgb_digest(jpeg_fixture(second)), second.at("rgb_sha256")) << first.at("file") << second.at("file");
    }
  }
}

TEST(JpegHuffmanTest, DamagedDataGivesWhatPillowMakesOfIt) {
  for (const auto& row : manifest().at("damaged")) {
    auto bytes = jpeg_fixture(row);
    bytes.at(row.at("offset")) = row.at("value").get<uint8_t>();
    const auto where = row.at("file").get<std::string>() + ", byte " + std::to_string(row.at("offset").get<int64_t>());
    if (row.at("rgb_sha256").is_null()) {
      EXPECT_NE(error_of<DataError>([&] { decode_image(bytes); }), "no error") << where;
    } else {
      EXPECT_EQ(rgb_digest(bytes), row.at("rgb_sha256")) << where;
    }
  }
}

TEST(JpegHuffmanTest, ATableThatIsMissingIsNotTakenFromTheImageBefore) {
  const auto whole = fixture("jpeg/optimized.jpg");
  auto bytes = whole;
  for (size_t i = 0; i + 1 < bytes.size(); ++i) {
    if (bytes[i] == 0xFF && bytes[i + 1] == 0xDB) bytes[i + 1] = 0xFE;  // quantisation tables become comments
  }
  const auto alone = error_of<DataError>([&] { decode_image(bytes); });
  EXPECT_NE(alone.find("is damaged: Quantization table 0x00 was not defined"), std::string::npos) << alone;
  decode_image(whole);
  EXPECT_EQ(error_of<DataError>([&] { decode_image(bytes); }), alone);
}

}  // namespace
}  // namespace contrastive::image
