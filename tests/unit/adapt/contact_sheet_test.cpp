#include "contrastive/adapt/contact_sheet.h"

#include <array>
#include <optional>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "contrastive/core/error.h"

#include "tests/support/errors.h"

namespace contrastive::adapt {
namespace {

using Colour = std::array<int, 3>;

SupportSet two_classes() {
  SupportSet set;
  set.features.labels = at::tensor(std::vector<int64_t>{0, 0, 1}, at::kLong);
  set.features.num_classes = 2;
  set.class_names = {"cat", "d\xC3\xB6g"};
  set.rows.resize(3);
  set.rows[0].score = 0.25;
  set.rows[1].note = "fallback";
  return set;
}

/// A plain image of twice its height's width.
std::optional<image::Image> plain(Colour colour) {
  image::Image made;
  made.width = 40;
  made.height = 20;
  for (int i = 0; i < 40 * 20; ++i) {
    for (const auto value : colour) made.pixels.push_back(static_cast<uint8_t>(value));
  }
  return made;
}

Colour pixel(const image::Image& sheet, int64_t x, int64_t y) {
  const auto* at = sheet.row(y) + 3 * x;
  return {at[0], at[1], at[2]};
}

TEST(ContactSheetTest, ShowsEveryClassInALineOfItsOwn) {
  const std::vector<std::optional<image::Image>> images{plain({255, 0, 0}), std::nullopt, plain({0, 0, 255})};
  const auto sheet = draw_contact_sheet(two_classes(), [&](int64_t row) { return images[static_cast<size_t>(row)]; },
                                        {.tile = 40, .per_class = 3});
  EXPECT_EQ(sheet.width, 160 + 3 * 44);
  EXPECT_EQ(sheet.height, 2 * 60);
  EXPECT_EQ(pixel(sheet, 180, 20), (Colour{255, 0, 0}));
  EXPECT_EQ(pixel(sheet, 180, 5), (Colour{200, 200, 200}));   // beside the image, whose shape is kept
  EXPECT_EQ(pixel(sheet, 224, 20), (Colour{200, 200, 200}));  // can't be read
  EXPECT_EQ(pixel(sheet, 268, 20), (Colour{255, 255, 255}));  // there is no third one
  EXPECT_EQ(pixel(sheet, 180, 80), (Colour{0, 0, 255}));
}

TEST(ContactSheetTest, BeginsWhereItIsTold) {
  const auto sheet = draw_contact_sheet(two_classes(),
                                        [](int64_t row) {
                                          return plain({static_cast<int>(row), 0, 0});
                                        },
                                        {.tile = 40, .per_class = 2, .first_class = 1});
  EXPECT_EQ(sheet.height, 60);
  EXPECT_EQ(pixel(sheet, 180, 20), (Colour{2, 0, 0}));
}

TEST(ContactSheetTest, RefusesSizesOutOfRange) {
  const auto draw = [](const ContactSheetOptions& options) {
    return test::message_of<ConfigError>([&] {
      draw_contact_sheet(
          two_classes(), [](int64_t) { return std::nullopt; }, options);
    });
  };
  EXPECT_EQ(draw({.tile = 1}), "[contact_sheet] tile must be in [16, 512], but is 1");
  EXPECT_EQ(draw({.per_class = 0}), "[contact_sheet] per_class must be in [1, 162], but is 0");
  EXPECT_EQ(draw({.first_class = 2}), "[contact_sheet] first_class must be in [0, 1], but is 2");
}

}  // namespace
}  // namespace contrastive::adapt
