#include "contrastive/data/synthetic.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "contrastive/core/error.h"

namespace contrastive::data {
namespace {

Sample read(const SampleSource& source, int64_t index) {
  Sample sample;
  RandomStream random(0, RandomPurpose::caption, {index});
  source.read(index, random, sample);
  return sample;
}

std::string name_of(const SceneObject& object) {
  return synthetic_colors()[static_cast<size_t>(object.color)] + " " +
         synthetic_shapes()[static_cast<size_t>(object.shape)];
}

std::vector<std::string> words_of(const std::string& text) {
  std::istringstream stream(text);
  std::vector<std::string> words;
  for (std::string word; stream >> word;) words.push_back(word);
  return words;
}

/// The pixel at a point given in shares of the sides.
std::array<int, 3> pixel_at(const image::Image& image, double x, double y) {
  const auto column = static_cast<int64_t>(x * static_cast<double>(image.width));
  const auto row = static_cast<int64_t>(y * static_cast<double>(image.height));
  const uint8_t* pixel = image.row(row) + 3 * column;
  return {pixel[0], pixel[1], pixel[2]};
}

/// What people call a colour, from its hue and lightness alone.
std::string color_word(const std::array<int, 3>& rgb) {
  const auto [red, green, blue] = rgb;
  const int highest = std::max({red, green, blue});
  const int lowest = std::min({red, green, blue});
  if (highest < 60) return "black";
  double hue = 0;
  const double range = highest - lowest;
  if (highest == red) hue = 60 * (green - blue) / range;
  if (highest == green) hue = 120 + 60 * (blue - red) / range;
  if (highest == blue) hue = 240 + 60 * (red - green) / range;
  if (hue < 0) hue += 360;
  if (hue < 15 || hue > 350) return "red";
  if (hue < 43) return "orange";
  if (hue < 65) return "yellow";
  if (hue < 170) return "green";
  if (hue < 250) return "blue";
  return hue < 305 ? "purple" : "pink";
}

TEST(SyntheticSourceTest, IsAPureFunctionOfSeedAndIndex) {
  const SyntheticSource source({.seed = 3, .samples = 1000});
  const SyntheticSource same({.seed = 3, .samples = 1000});
  const SyntheticSource other({.seed = 4, .samples = 1000});
  Sample reused;
  int64_t different = 0;
  for (int64_t index = 199; index >= 0; --index) {
    const auto expected = read(source, index);
    RandomStream random(99, RandomPurpose::caption, {index + 1});
    same.read(index, random, reused);
    ASSERT_EQ(reused.drawn.pixels, expected.drawn.pixels) << index;
    ASSERT_EQ(reused.caption, expected.caption) << index;
    different += read(other, index).drawn.pixels != expected.drawn.pixels;
  }
  EXPECT_EQ(different, 200);
}

TEST(SyntheticSourceTest, DrawsRgbSquaresOfTheAskedSize) {
  for (const int64_t size : {16, 48, 64, 100}) {
    const auto sample = read(SyntheticSource({.image_size = size}), 5);
    EXPECT_EQ(sample.drawn.width, size);
    EXPECT_EQ(sample.drawn.height, size);
    EXPECT_EQ(sample.drawn.mode, image::PixelMode::rgb);
    EXPECT_EQ(sample.drawn.pixels.size(), static_cast<size_t>(size * size * 3));
    EXPECT_TRUE(sample.encoded.empty());
    EXPECT_EQ(sample.label, -1);
  }
}

TEST(SyntheticSourceTest, HoldsOutCombinationsButNoColorAndNoShape) {
  const auto colors = static_cast<int64_t>(synthetic_colors().size());
  const auto shapes = static_cast<int64_t>(synthetic_shapes().size());
  EXPECT_GE(colors, 8);
  EXPECT_GE(shapes, 8);
  int64_t held_out = 0;
  std::map<int64_t, int64_t> of_color;
  std::map<int64_t, int64_t> of_shape;
  for (int64_t color = 0; color < colors; ++color) {
    for (int64_t shape = 0; shape < shapes; ++shape) {
      if (!held_out_of_training(color, shape)) continue;
      ++held_out;
      ++of_color[color];
      ++of_shape[shape];
    }
  }
  EXPECT_GE(held_out, 12);
  for (int64_t color = 0; color < colors; ++color) EXPECT_EQ(of_color[color], held_out / colors) << color;
  for (int64_t shape = 0; shape < shapes; ++shape) EXPECT_EQ(of_shape[shape], held_out / shapes) << shape;
}

TEST(SyntheticSourceTest, NeverShowsAHeldOutCombination) {
  const SyntheticSource source({.seed = 11, .samples = 20'000});
  std::set<std::string> shown;
  for (int64_t index = 0; index < source.size(); ++index) {
    const auto scene = source.scene(index);
    ASSERT_FALSE(held_out_of_training(scene.main.color, scene.main.shape)) << index;
    shown.insert(name_of(scene.main));
    if (!scene.second) continue;
    ASSERT_FALSE(held_out_of_training(scene.second->color, scene.second->shape)) << index;
  }
  EXPECT_EQ(shown.size(), synthetic_colors().size() * synthetic_shapes().size() * 3 / 4);
}

TEST(SyntheticSourceTest, CaptionsNeverNameAHeldOutCombination) {
  const SyntheticSource source({.seed = 11, .samples = 5'000});
  const auto held_out = synthetic_classification({}).class_names;
  for (int64_t index = 0; index < source.size(); ++index) {
    const auto caption = read(source, index).caption;
    for (const auto& name : held_out) ASSERT_EQ(caption.find(name), caption.npos) << caption;
  }
}

TEST(SyntheticSourceTest, CaptionsNameTheMainObjectAndNothingThatIsNotThere) {
  const SyntheticSource source({.seed = 5, .samples = 3'000});
  int64_t name_both = 0;
  for (int64_t index = 0; index < source.size(); ++index) {
    const auto scene = source.scene(index);
    const auto caption = read(source, index).caption;
    ASSERT_NE(caption.find(name_of(scene.main)), caption.npos) << caption;
    const bool names_second = scene.second && caption.find(name_of(*scene.second)) != caption.npos;
    name_both += names_second;
    int64_t shapes_named = 0;
    for (const auto& word : words_of(caption)) {
      shapes_named += std::count(synthetic_shapes().begin(), synthetic_shapes().end(), word);
    }
    ASSERT_EQ(shapes_named, names_second ? 2 : 1) << caption;
  }
  EXPECT_GT(name_both, source.size() / 10);
  EXPECT_LT(name_both, source.size() / 2);
}

TEST(SyntheticSourceTest, RelationsInCaptionsHoldInThePicture) {
  const SyntheticSource source({.seed = 6, .samples = 5'000});
  std::map<std::string, int64_t> seen;
  for (int64_t index = 0; index < source.size(); ++index) {
    const auto scene = source.scene(index);
    if (!scene.second) continue;
    const auto caption = read(source, index).caption;
    const bool main_first = caption.find(name_of(scene.main)) < caption.find(name_of(*scene.second));
    const auto& first = main_first ? scene.main : *scene.second;
    const auto& second = main_first ? *scene.second : scene.main;
    const auto expect = [&](const std::string& relation, bool holds) {
      if (caption.find(" " + relation + " ") == caption.npos) return;
      ++seen[relation];
      EXPECT_TRUE(holds) << caption;
    };
    expect("above", first.y < second.y - 0.3);
    expect("below", first.y > second.y + 0.3);
    expect("left", first.x < second.x - 0.3);
    expect("right", first.x > second.x + 0.3);
  }
  for (const auto& [relation, count] : seen) EXPECT_GT(count, 50) << relation;
  EXPECT_EQ(seen.size(), 4U);
}

TEST(SyntheticSourceTest, SizeWordsHoldInThePicture) {
  const SyntheticSource source({.seed = 7, .samples = 3'000});
  int64_t small = 0;
  int64_t large = 0;
  for (int64_t index = 0; index < source.size(); ++index) {
    const auto scene = source.scene(index);
    const auto caption = read(source, index).caption;
    if (scene.second) {
      EXPECT_LT(scene.second->radius, 0.8 * scene.main.radius);
      EXPECT_EQ(caption.find("small " + name_of(scene.main)), caption.npos) << caption;
      EXPECT_EQ(caption.find("large " + name_of(*scene.second)), caption.npos) << caption;
      continue;
    }
    if (caption.find("small") != caption.npos) {
      ++small;
      EXPECT_LT(scene.main.radius, 0.25) << caption;
    }
    if (caption.find("large") != caption.npos) {
      ++large;
      EXPECT_GT(scene.main.radius, 0.33) << caption;
    }
  }
  EXPECT_GT(small, 20);
  EXPECT_GT(large, 20);
}

TEST(SyntheticSourceTest, ObjectsLieInsideTheCanvasAndApart) {
  const SyntheticSource source({.seed = 8, .samples = 5'000});
  const auto inside = [](const SceneObject& object) {
    return object.x > object.radius && object.x < 1 - object.radius && object.y > object.radius &&
           object.y < 1 - object.radius;
  };
  for (int64_t index = 0; index < source.size(); ++index) {
    const auto scene = source.scene(index);
    ASSERT_TRUE(inside(scene.main)) << index;
    if (!scene.second) continue;
    ASSERT_TRUE(inside(*scene.second)) << index;
    const double apart = std::hypot(scene.main.x - scene.second->x, scene.main.y - scene.second->y);
    ASSERT_GT(apart, scene.main.radius + scene.second->radius) << index;
  }
}

TEST(SyntheticSourceTest, ThePixelsHaveTheNamedColor) {
  const SyntheticSource source({.seed = 9, .samples = 2'000});
  for (int64_t index = 0; index < source.size(); ++index) {
    const auto& object = source.scene(index).main;
    const auto sample = read(source, index);
    const bool hollow = synthetic_shapes()[static_cast<size_t>(object.shape)] == "ring";
    const auto pixel = pixel_at(sample.drawn, object.x + (hollow ? 0.77 * object.radius : 0), object.y);
    ASSERT_EQ(color_word(pixel), synthetic_colors()[static_cast<size_t>(object.color)])
        << "sample " << index << ": " << sample.caption << " (" << pixel[0] << ", " << pixel[1] << ", " << pixel[2]
        << ")";
  }
}

TEST(SyntheticSourceTest, TheBackgroundNeverHidesTheObject) {
  const SyntheticSource source({.seed = 10, .samples = 2'000});
  for (int64_t index = 0; index < source.size(); ++index) {
    const auto& object = source.scene(index).main;
    const auto sample = read(source, index);
    const bool hollow = synthetic_shapes()[static_cast<size_t>(object.shape)] == "ring";
    const auto inside = pixel_at(sample.drawn, object.x + (hollow ? 0.77 * object.radius : 0), object.y);
    const auto corner = pixel_at(sample.drawn, 0.005, 0.005);
    const double contrast = std::hypot(inside[0] - corner[0], inside[1] - corner[1], inside[2] - corner[2]);
    ASSERT_GT(contrast, 60) << "sample " << index << ": " << sample.caption;
  }
}

TEST(SyntheticSourceTest, ArticlesAreRight) {
  const SyntheticSource source({.seed = 12, .samples = 5'000});
  int64_t with_an = 0;
  for (int64_t index = 0; index < source.size(); ++index) {
    const auto caption = read(source, index).caption;
    const auto words = words_of(caption);
    for (size_t i = 0; i < words.size(); ++i) {
      if (words[i] != "a" && words[i] != "an") continue;
      ASSERT_LT(i + 1, words.size()) << caption;
      const bool vowel = std::string("aeiou").find(words[i + 1].front()) != std::string::npos;
      ASSERT_EQ(words[i] == "an", vowel) << caption;
      with_an += vowel;
    }
    ASSERT_EQ(caption.find("  "), caption.npos) << caption;
    ASSERT_NE(caption.back(), ' ') << caption;
  }
  EXPECT_GT(with_an, 100);
}

TEST(SyntheticSourceTest, TheFingerprintTellsSetsApart) {
  const std::set<std::string> fingerprints{
      SyntheticSource({.seed = 1, .samples = 10, .image_size = 64}).fingerprint(),
      SyntheticSource({.seed = 2, .samples = 10, .image_size = 64}).fingerprint(),
      SyntheticSource({.seed = 1, .samples = 11, .image_size = 64}).fingerprint(),
      SyntheticSource({.seed = 1, .samples = 10, .image_size = 48}).fingerprint(),
      synthetic_classification({.seed = 1, .samples = 10, .image_size = 64}).source->fingerprint()};
  EXPECT_EQ(fingerprints.size(), 5U);
  EXPECT_EQ(SyntheticSource({.seed = 1}).describe(17), "[synthetic training set, seed 1] sample 17");
}

TEST(SyntheticSourceTest, RejectsOptionsOutOfRange) {
  const auto message_of = [](const SyntheticOptions& options) -> std::string {
    try {
      const SyntheticSource source(options);
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "no error";
  };
  EXPECT_EQ(message_of({.samples = 0}), "[synthetic] samples must be at least 1, but is 0");
  EXPECT_EQ(message_of({.image_size = 15}), "[synthetic] image_size must be in [16, 4096], but is 15");
  EXPECT_THROW(synthetic_classification({.samples = -1}), ConfigError);
}

TEST(SyntheticClassificationTest, HasEveryHeldOutClassEquallyOftenAndNoOther) {
  const auto set = synthetic_classification({.seed = 1, .samples = 160});
  EXPECT_LE(1.0 / static_cast<double>(set.class_names.size()), 0.084);
  std::set<std::string> held_out;
  for (size_t color = 0; color < synthetic_colors().size(); ++color) {
    for (size_t shape = 0; shape < synthetic_shapes().size(); ++shape) {
      if (!held_out_of_training(static_cast<int64_t>(color), static_cast<int64_t>(shape))) continue;
      held_out.insert(synthetic_colors()[color] + " " + synthetic_shapes()[shape]);
    }
  }
  EXPECT_EQ(std::set<std::string>(set.class_names.begin(), set.class_names.end()), held_out);
  EXPECT_EQ(set.class_names.size(), held_out.size());

  std::map<int64_t, int64_t> counts;
  for (int64_t index = 0; index < set.source->size(); ++index) ++counts[read(*set.source, index).label];
  EXPECT_EQ(counts.size(), set.class_names.size());
  EXPECT_EQ(counts.begin()->first, 0);
  for (const auto& [label, count] : counts) EXPECT_EQ(count, 160 / static_cast<int64_t>(counts.size())) << label;
}

TEST(SyntheticClassificationTest, TheCaptionOfAnImageNamesItsClass) {
  const auto set = synthetic_classification({.seed = 2, .samples = 500});
  for (int64_t index = 0; index < set.source->size(); ++index) {
    const auto sample = read(*set.source, index);
    ASSERT_NE(sample.caption.find(set.class_names[static_cast<size_t>(sample.label)]), std::string::npos)
        << sample.caption;
  }
}

TEST(SyntheticClassificationTest, TemplatesSuitEveryClassName) {
  const auto set = synthetic_classification({});
  EXPECT_FALSE(set.templates.empty());
  for (const auto& text : set.templates) {
    EXPECT_NE(text.find("{c}"), text.npos) << text;
    EXPECT_EQ(text.find("a {c}"), text.npos) << text << ": wrong before a vowel";
  }
}

}  // namespace
}  // namespace contrastive::data
