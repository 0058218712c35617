#include "contrastive/adapt/contact_sheet.h"

#include <algorithm>
#include <cmath>
#include <string>

#include <fmt/format.h>
#include <opencv2/core.hpp>
#include <opencv2/imgproc.hpp>

#include "contrastive/core/error.h"

namespace contrastive::adapt {
namespace {

constexpr int kNameWidth = 160;
constexpr int kTextHeight = 16;
constexpr int kGap = 4;
constexpr double kFontScale = 0.4;
constexpr int64_t kMaxPixels = 16384;  ///< of a side of the sheet
const cv::Scalar kGrey(200, 200, 200);
const cv::Scalar kBlack(0, 0, 0);

void check(const ContactSheetOptions& options, const SupportSet& set) {
  const auto fail = [](const char* name, int64_t low, int64_t high, int64_t value) {
    throw ConfigError(fmt::format("[contact_sheet] {} must be in [{}, {}], but is {}", name, low, high, value));
  };
  if (options.tile < 16 || options.tile > 512) fail("tile", 16, 512, options.tile);
  const auto most_tiles = (kMaxPixels - kNameWidth) / (options.tile + kGap);
  if (options.per_class < 1 || options.per_class > most_tiles) fail("per_class", 1, most_tiles, options.per_class);
  const auto most_classes = kMaxPixels / (options.tile + kTextHeight + kGap);
  if (options.max_classes < 1 || options.max_classes > most_classes) {
    fail("max_classes", 1, most_classes, options.max_classes);
  }
  if (options.first_class < 0 || options.first_class >= set.num_classes()) {
    fail("first_class", 0, set.num_classes() - 1, options.first_class);
  }
}

/// OpenCV's letters are ASCII; others become '?'.
std::string plain(const std::string& text, size_t max_letters) {
  std::string result;
  for (const char c : text) {
    if (static_cast<unsigned char>(c) >= 0xC0 || (c >= ' ' && c <= '~')) result += c >= ' ' && c <= '~' ? c : '?';
  }
  return result.size() > max_letters ? result.substr(0, max_letters - 2) + ".." : result;
}

void write(cv::Mat& sheet, const std::string& text, int x, int y, size_t max_letters) {
  cv::putText(sheet, plain(text, max_letters), {x, y}, cv::FONT_HERSHEY_SIMPLEX, kFontScale, kBlack, 1, cv::LINE_AA);
}

/// The image within a square, its shape kept.
void draw_tile(cv::Mat& sheet, const std::optional<image::Image>& source, int x, int y, int tile) {
  cv::rectangle(sheet, {x, y, tile, tile}, kGrey, cv::FILLED);
  if (!source || source->width < 1 || source->height < 1) return;
  auto rgb = image::to_rgb(*source);
  const cv::Mat whole(static_cast<int>(rgb.height), static_cast<int>(rgb.width), CV_8UC3, rgb.pixels.data());
  const auto scale = static_cast<double>(tile) / static_cast<double>(std::max(rgb.width, rgb.height));
  const int width = std::clamp(static_cast<int>(std::lround(static_cast<double>(rgb.width) * scale)), 1, tile);
  const int height = std::clamp(static_cast<int>(std::lround(static_cast<double>(rgb.height) * scale)), 1, tile);
  cv::Mat place = sheet({x + (tile - width) / 2, y + (tile - height) / 2, width, height});
  cv::resize(whole, place, place.size(), 0, 0, scale < 1 ? cv::INTER_AREA : cv::INTER_NEAREST);
}

std::string caption(const SupportSource& row) {
  if (!row.note.empty()) return row.note;
  return std::isnan(row.score) ? "" : fmt::format("{:.3f}", row.score);
}

}  // namespace

image::Image draw_contact_sheet(const SupportSet& set,
                                const std::function<std::optional<image::Image>(int64_t row)>& read,
                                const ContactSheetOptions& options) {
  check(options, set);
  const auto end = std::min(set.num_classes(), options.first_class + options.max_classes);
  const int tile = static_cast<int>(options.tile);
  const int line = tile + kTextHeight + kGap;
  image::Image sheet;
  sheet.width = kNameWidth + options.per_class * (tile + kGap);
  sheet.height = (end - options.first_class) * line;
  sheet.pixels.assign(static_cast<size_t>(3 * sheet.width * sheet.height), 255);
  cv::Mat canvas(static_cast<int>(sheet.height), static_cast<int>(sheet.width), CV_8UC3, sheet.pixels.data());

  const auto offsets = set.features.offsets();
  const auto* begin = offsets.const_data_ptr<int64_t>();
  for (int64_t c = options.first_class; c < end; ++c) {
    const int y = static_cast<int>(c - options.first_class) * line;
    write(canvas, set.class_names[static_cast<size_t>(c)], kGap, y + tile / 2, 22);
    write(canvas, fmt::format("{} images", begin[c + 1] - begin[c]), kGap, y + tile / 2 + kTextHeight, 22);
    const auto shown = std::min(options.per_class, begin[c + 1] - begin[c]);
    for (int64_t i = 0; i < shown; ++i) {
      const int x = kNameWidth + static_cast<int>(i) * (tile + kGap);
      draw_tile(canvas, read(begin[c] + i), x, y, tile);
      write(canvas, caption(set.rows[static_cast<size_t>(begin[c] + i)]), x, y + tile + kTextHeight - 4,
            static_cast<size_t>(std::max(4, tile / 8)));
    }
  }
  return sheet;
}

}  // namespace contrastive::adapt
