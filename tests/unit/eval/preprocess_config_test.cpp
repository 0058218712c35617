#include "contrastive/eval/preprocess_config.h"

#include <string>

#include <gtest/gtest.h>

#include "contrastive/core/config_node.h"

#include "tests/support/errors.h"

namespace contrastive::eval {
namespace {

image::PreprocessSpec load(const std::string& text) {
  return load_preprocess(parse_config(text, "test"), 224);
}

TEST(PreprocessConfigTest, AntialiasAndCropFractionAreOnlyWrittenIfTheyAreNotUsual) {
  image::PreprocessSpec spec;
  EXPECT_EQ(to_node(spec).find("antialias"), nullptr);
  EXPECT_EQ(to_node(spec).find("crop_fraction"), nullptr);
  spec.interpolation = image::Interpolation::bilinear;
  spec.antialias = false;
  spec.crop_fraction = 0.875;
  const auto read = load(to_json(to_node(spec)));
  EXPECT_FALSE(read.antialias);
  EXPECT_EQ(read.crop_fraction, 0.875);
  EXPECT_EQ(read.interpolation, image::Interpolation::bilinear);
}

TEST(PreprocessConfigTest, WhatDoesNotGoTogetherIsNamed) {
  const auto message = test::message_of(
      [] { load("{mean: [0, 0, 0], std: [1, 1, 1], antialias: false, crop_fraction: 0.9, resize_mode: longest}"); });
  EXPECT_NE(message.find("antialias: false needs interpolation bilinear"), std::string::npos) << message;
  EXPECT_NE(message.find("antialias: false needs resize_mode shortest or squash"), std::string::npos) << message;
  EXPECT_NE(message.find("crop_fraction: needs resize_mode shortest or squash"), std::string::npos) << message;
  EXPECT_NE(test::message_of([] { load("{crop_fraction: 0}"); }).find("crop_fraction"), std::string::npos);
}

TEST(PreprocessConfigTest, TransformersHasNeither) {
  image::PreprocessSpec spec;
  spec.crop_fraction = 0.875;
  EXPECT_NE(test::message_of([&] { to_hf_preprocess(spec); }).find("crop_fraction"), std::string::npos);
  spec = {};
  spec.interpolation = image::Interpolation::bilinear;
  spec.antialias = false;
  EXPECT_NE(test::message_of([&] { to_hf_preprocess(spec); }).find("antialias"), std::string::npos);
}

}  // namespace
}  // namespace contrastive::eval
