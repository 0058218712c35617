#include "contrastive/data/normalize.h"

#include <gtest/gtest.h>

#include "contrastive/core/safetensors.h"
#include "contrastive/image/transform.h"

#include "tests/support/paths.h"
#include "tests/support/tensors.h"

namespace contrastive::data {
namespace {

TEST(NormalizeParityTest, EqualsOpenClipsTensorOfTheSamePixels) {
  const auto fixtures = test::fixtures_dir();
  if (!fixtures) GTEST_SKIP() << "no parity fixtures here; set CONTRASTIVE_FIXTURES";
  const SafetensorsFile file(*fixtures / "preprocess" / "normalised.safetensors");
  const image::PreprocessSpec spec;
  const auto images = normalize_images(file.tensor("pixels").unsqueeze(0), spec.mean, spec.std, torch::kCPU);
  EXPECT_TRUE(test::tensors_near("normalised", images[0].contiguous(), file.tensor("tensor"), {1e-6, 0}));
}

}  // namespace
}  // namespace contrastive::data
