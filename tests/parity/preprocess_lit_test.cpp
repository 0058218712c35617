// Against vit_jax's PreprocessImages on TensorFlow; every size and count comes from config.json.

#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "contrastive/core/safetensors.h"
#include "contrastive/data/normalize.h"
#include "contrastive/image/transform.h"

#include "tests/support/paths.h"
#include "tests/support/tensors.h"

namespace contrastive::image {
namespace {

/// Shapes: uint8 [H, W, 3].
Image to_image(const torch::Tensor& pixels) {
  const auto packed = pixels.contiguous();
  Image image{packed.size(1), packed.size(0), PixelMode::rgb, {}, {}};
  image.pixels.assign(packed.data_ptr<uint8_t>(), packed.data_ptr<uint8_t>() + packed.numel());
  return image;
}

torch::Tensor to_tensor(const Image& image) {
  auto pixels = at::empty({image.height, image.width, 3}, at::kByte);
  std::memcpy(pixels.data_ptr<uint8_t>(), image.pixels.data(), image.pixels.size());
  return pixels;
}

TEST(PreprocessLitParityTest, ResizesCropsAndScalesAsGooglesModelsExpect) {
  const auto folder = test::lit_fixtures_dir();
  if (!folder) GTEST_SKIP() << "no LiT fixtures here; set CONTRASTIVE_FIXTURES_LIT";
  const auto manifest = nlohmann::json::parse(std::ifstream(*folder / "config.json")).at("cases").at("preprocess");
  const SafetensorsFile file(*folder / manifest.at("expected").get<std::string>());
  int items = 0;
  for (const auto& item : manifest.at("items")) {
    SCOPED_TRACE(item.dump());
    const auto prefix = std::to_string(item.at("index").get<int>()) + "/";
    PreprocessSpec spec;
    spec.size = item.at("size");
    spec.mean = spec.std = {0.5F, 0.5F, 0.5F};
    spec.interpolation = Interpolation::bilinear;
    const bool is_square = item.at("mode") == "resize_square";
    ASSERT_TRUE(is_square || item.at("mode") == "resize_small_center_crop");
    spec.resize_mode = is_square ? ResizeMode::squash : ResizeMode::shortest;
    spec.antialias = false;

    const auto square = to_tensor(preprocess_for_evaluation(to_image(file.tensor(prefix + "input")), spec));
    EXPECT_TRUE(test::tensors_equal("pixels", square, file.tensor(prefix + "resized_u8")));
    const auto normalised = data::normalize_images(square.unsqueeze(0), spec.mean, spec.std, torch::kCPU);  // [1,3,H,W]
    EXPECT_TRUE(test::tensors_near("output", normalised[0].permute({1, 2, 0}), file.tensor(prefix + "output"),
                                   {1e-7, 0}));  // (x - 127.5) / 127.5 rounds once less
    ++items;
  }
  EXPECT_GT(items, 0);
}

}  // namespace
}  // namespace contrastive::image
