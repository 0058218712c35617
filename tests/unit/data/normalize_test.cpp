#include "contrastive/data/normalize.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace contrastive::data {
namespace {

TEST(NormalizeImagesTest, ScalesEachChannelAndPutsChannelsFirst) {
  const auto pixels = at::tensor({0, 51, 255}, at::kByte).view({1, 1, 1, 3}).expand({2, 4, 5, 3});
  const auto images = normalize_images(pixels, {0.5F, 0.2F, 0.25F}, {0.5F, 0.1F, 0.25F}, torch::kCPU);
  EXPECT_EQ(images.sizes(), (at::IntArrayRef{2, 3, 4, 5}));
  EXPECT_TRUE(images.is_contiguous(at::MemoryFormat::ChannelsLast));
  EXPECT_NEAR(images[1][0][3][4].item<float>(), -1.0F, 1e-6);  // (0 - .5) / .5
  EXPECT_NEAR(images[1][1][3][4].item<float>(), 0.0F, 1e-6);   // (.2 - .2) / .1
  EXPECT_NEAR(images[1][2][3][4].item<float>(), 3.0F, 1e-6);   // (1 - .25) / .25
}

TEST(NormalizeImagesTest, RefusesOtherShapesAndTypesByName) {
  const auto message = [](const torch::Tensor& pixels) -> std::string {
    try {
      normalize_images(pixels, {}, {1, 1, 1}, torch::kCPU);
    } catch (const c10::Error& error) {
      return error.what_without_backtrace();
    }
    return "no error";
  };
  EXPECT_NE(message(at::zeros({2, 3, 4, 4}, at::kByte)).find("pixels must be [B, H, W, 3] uint8"), std::string::npos);
  EXPECT_NE(message(at::zeros({2, 4, 4, 3})).find("pixels must be [B, H, W, 3] uint8"), std::string::npos);
}

}  // namespace
}  // namespace contrastive::data
