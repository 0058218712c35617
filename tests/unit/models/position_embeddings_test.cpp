#include "contrastive/models/position_embeddings.h"

#include <charconv>
#include <string>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "contrastive/core/safetensors.h"

#include "tests/support/paths.h"
#include "tests/support/tensors.h"

namespace contrastive::models {
namespace {

/// Tables resized by open_clip: "image.OLD.NEW.in", ".out"; made by the script beside the file.
SafetensorsFile reference() {
  return SafetensorsFile(test::own_fixtures_dir() / "positions" / "positions.safetensors");
}

TEST(PositionEmbeddingsTest, BicubicImageGridsAndTextEqualOpenClip) {
  const auto file = reference();
  int cases = 0;
  for (const auto& [name, input] : file.tensors()) {
    if (!name.ends_with(".in")) continue;
    const auto stem = name.substr(0, name.size() - 3);
    const auto expected = file.tensor(stem + ".out");
    const auto size = std::stoll(stem.substr(stem.rfind('.') + 1));
    const auto actual = stem.starts_with("image")
                            ? resize_image_positions(input, /*prefix=*/1, size, PositionResize::bicubic)
                            : resize_text_positions(input, size);
    EXPECT_TRUE(test::tensors_near(stem, actual, expected, {1e-6, 0}));
    ++cases;
  }
  EXPECT_EQ(cases, 6);
}

TEST(PositionEmbeddingsTest, BilinearKeepsTheCornersAndThePrefix) {
  const auto table = test::random_normal({1, 2 + 9, 4}, 3);
  const auto resized = resize_image_positions(table, /*prefix=*/2, 5, PositionResize::bilinear);
  ASSERT_EQ(resized.sizes(), (std::vector<int64_t>{1, 2 + 25, 4}));
  for (const auto& [from, to] : {std::pair(0, 0), {1, 1}, {2, 2}, {4, 6}, {8, 22}, {10, 26}}) {
    EXPECT_TRUE(test::tensors_near(fmt::format("row {}", from), resized[0][to], table[0][from], {1e-6, 0}));
  }
  const auto middle = resized[0].slice(0, 2).view({5, 5, 4});
  const auto old = table[0].slice(0, 2).view({3, 3, 4});
  EXPECT_TRUE(test::tensors_near("between", middle[0][1], (old[0][0] + old[0][1]) / 2, {1e-6, 0}));
}

TEST(PositionEmbeddingsTest, HalfPrecisionTablesStayHalf) {
  const auto table = test::random_normal({1 + 4, 4}, 3).to(at::kHalf);
  EXPECT_EQ(resize_image_positions(table, 1, 3, PositionResize::bicubic).scalar_type(), at::kHalf);
}

TEST(PositionEmbeddingsTest, OnlyTablesOfAnotherSizeAreTouched) {
  ModelConfig config;
  config.vision_cfg.image_size = 48;
  config.vision_cfg.patch_size = 16;
  config.text_cfg.context_length = 5;
  auto tensors = lazy({{"visual.positional_embedding", test::random_normal({1 + 4, 4}, 1)},
                       {"positional_embedding", test::random_normal({5, 4}, 2)},
                       {"visual.proj", test::random_normal({5, 4}, 3)}});
  EXPECT_EQ(fit_positions(tensors, config, PositionResize::bicubic),
            std::vector<std::string>{"visual.positional_embedding"});
  EXPECT_EQ(tensors[0].shape, (std::vector<int64_t>{10, 4}));
  EXPECT_EQ(tensors[0].load().sizes(), (std::vector<int64_t>{10, 4}));
  EXPECT_EQ(tensors[1].shape, (std::vector<int64_t>{5, 4}));
}

TEST(PositionEmbeddingsTest, AGridThatIsNotSquareIsRefused) {
  EXPECT_THROW(resize_image_positions(at::zeros({1 + 6, 4}), 1, 4, PositionResize::bicubic), c10::Error);
}

}  // namespace
}  // namespace contrastive::models
