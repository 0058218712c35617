#pragma once

#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "contrastive/image/image.h"
#include "contrastive/image/resize.h"

#include "tests/support/paths.h"

namespace contrastive::image {

inline std::vector<uint8_t> read_bytes(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw std::runtime_error("can't open " + path.string());
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

/// A file of tests/fixtures/image; make_fixtures.py there says what it is.
inline std::vector<uint8_t> fixture(const std::string& name) {
  return read_bytes(test::own_fixtures_dir() / "image" / name);
}

/// One object for each file: what Pillow makes of it.
inline nlohmann::json fixture_rows() {
  return nlohmann::json::parse(fixture("manifest.json")).at("images");
}

inline std::string mode_name(PixelMode mode) {
  switch (mode) {
    case PixelMode::bilevel:
      return "1";
    case PixelMode::grey:
      return "L";
    case PixelMode::grey16:
      return "I;16";
    case PixelMode::grey_alpha:
      return "LA";
    case PixelMode::palette:
      return "P";
    case PixelMode::rgb:
      return "RGB";
    case PixelMode::rgba:
      return "RGBA";
    case PixelMode::cmyk:
      return "CMYK";
  }
  return "?";
}

/// The text of the error that `call` throws, which has to be an E.
template <typename E, typename Call>
std::string error_of(const Call& call) {
  try {
    call();
  } catch (const E& error) {
    return error.what();
  }
  return "no error";
}

/// An RGB image without two equal neighbours.
inline Image pattern(int64_t width, int64_t height) {
  Image image{width, height, PixelMode::rgb, {}, {}};
  for (int64_t y = 0; y < height; ++y) {
    for (int64_t x = 0; x < width; ++x) {
      for (const int64_t value : {x * 7 + y, y * 5, x * y * 3}) image.pixels.push_back(static_cast<uint8_t>(value));
    }
  }
  return image;
}

}  // namespace contrastive::image
