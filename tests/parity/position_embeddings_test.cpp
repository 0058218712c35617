// Against big_vision's resample_posemb (scipy.ndimage.zoom); the sizes come from the file's names.
#include "contrastive/models/position_embeddings.h"

#include <algorithm>
#include <string>

#include <gtest/gtest.h>

#include "contrastive/core/safetensors.h"

#include "tests/support/paths.h"
#include "tests/support/tensors.h"

namespace contrastive {
namespace {

TEST(PositionEmbeddingsParityTest, BilinearEqualsGooglesTables) {
  const auto fixtures = test::lit_fixtures_dir();
  if (!fixtures) GTEST_SKIP() << "no LiT parity fixtures (CONTRASTIVE_FIXTURES_LIT)";
  const SafetensorsFile file(*fixtures / "posemb_tables.safetensors");
  int cases = 0;
  for (const auto& name : file.names()) {
    if (!name.starts_with("in/")) continue;
    const auto sizes = name.substr(3);
    const auto grid = std::stoll(sizes.substr(sizes.find("to") + 2));
    const auto resized = models::resize_image_positions(file.tensor(name), 0, grid, models::PositionResize::bilinear);
    // Where scipy's rounding zeroes the last row (config.json lists the pairs) the aligned corners are what is meant.
    EXPECT_TRUE(test::tensors_near(sizes, resized, file.tensor("align_corners/" + sizes), {1e-5, 1e-5}));
    ++cases;
  }
  EXPECT_GT(cases, 0);
}

}  // namespace
}  // namespace contrastive
