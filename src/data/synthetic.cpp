#include "contrastive/data/synthetic.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <numbers>
#include <string_view>
#include <utility>

#include <fmt/format.h>
#include <opencv2/core.hpp>
#include <opencv2/imgproc.hpp>

#include "contrastive/core/error.h"

namespace contrastive::data {
namespace {

constexpr double kMargin = 0.02;  // between an object and the canvas's edge
constexpr double kGap = 0.04;     // between two objects
constexpr double kMaxTilt = 0.2;  // radians; small enough to keep squares and diamonds apart
constexpr double kPairShare = 0.4;

/// Which of the two disjoint sets of pictures of one seed is meant: the first counter of a scene's stream.
enum class Split : int64_t { train = 0, test = 1 };

struct Rgb {
  double red = 0;
  double green = 0;
  double blue = 0;
};

struct NamedColor {
  const char* name;
  Rgb value;
};

constexpr std::array<NamedColor, 8> kColors{{{"red", {214, 36, 36}},
                                             {"orange", {245, 135, 25}},
                                             {"yellow", {245, 220, 40}},
                                             {"green", {40, 160, 70}},
                                             {"blue", {40, 80, 215}},
                                             {"purple", {128, 45, 165}},
                                             {"pink", {250, 145, 190}},
                                             {"black", {18, 18, 18}}}};

/// A shape's outline inside the unit circle, more or less; y points down. Filled by the even-odd rule.
struct Outline {
  const char* name;
  std::vector<std::vector<cv::Point2d>> contours;
};

std::vector<cv::Point2d> circle_outline(double radius) {
  constexpr int kCorners = 40;
  std::vector<cv::Point2d> points;
  for (int i = 0; i < kCorners; ++i) {
    const double angle = 2 * std::numbers::pi * i / kCorners;
    points.emplace_back(radius * std::cos(angle), radius * std::sin(angle));
  }
  return points;
}

std::vector<cv::Point2d> star_outline() {
  std::vector<cv::Point2d> points;
  for (int i = 0; i < 10; ++i) {
    const double angle = std::numbers::pi * i / 5;
    const double radius = i % 2 == 0 ? 1.05 : 0.45;
    points.emplace_back(radius * std::sin(angle), -radius * std::cos(angle));
  }
  return points;
}

std::vector<cv::Point2d> cross_outline() {
  constexpr double kArm = 0.3;
  return {{-kArm, -1}, {kArm, -1}, {kArm, -kArm}, {1, -kArm}, {1, kArm},   {kArm, kArm},
          {kArm, 1},   {-kArm, 1}, {-kArm, kArm}, {-1, kArm}, {-1, -kArm}, {-kArm, -kArm}};
}

std::vector<cv::Point2d> heart_outline() {
  constexpr int kCorners = 40;
  std::vector<cv::Point2d> points;
  for (int i = 0; i < kCorners; ++i) {
    const double t = 2 * std::numbers::pi * i / kCorners;
    const double x = 16 * std::pow(std::sin(t), 3);
    const double y = 13 * std::cos(t) - 5 * std::cos(2 * t) - 2 * std::cos(3 * t) - std::cos(4 * t);
    points.emplace_back(x / 16, -(y + 2.5) / 16);
  }
  return points;
}

const std::vector<Outline>& outlines() {
  static const std::vector<Outline> all{
      {"circle", {circle_outline(1)}},
      {"square", {{{-0.85, -0.85}, {0.85, -0.85}, {0.85, 0.85}, {-0.85, 0.85}}}},
      {"triangle", {{{0, -1}, {0.92, 0.74}, {-0.92, 0.74}}}},
      {"star", {star_outline()}},
      {"cross", {cross_outline()}},
      {"diamond", {{{0, -1}, {0.62, 0}, {0, 1}, {-0.62, 0}}}},
      {"ring", {circle_outline(1), circle_outline(0.55)}},
      {"heart", {heart_outline()}},
  };
  return all;
}

/// Everything a picture and its caption are made of; drawn in full before the first pixel is set.
struct Plan {
  enum class Background { plain, gradient, stripes, speckles };
  enum class Relation { above, below, left, right };  ///< of the main object to the second

  Scene scene;
  Relation relation = Relation::above;
  std::array<Rgb, 2> object_colors;
  std::array<double, 2> tilts{};  ///< radians
  Background background = Background::plain;
  std::array<Rgb, 2> background_colors;
};

int64_t num_colors() {
  return static_cast<int64_t>(kColors.size());
}

int64_t num_shapes() {
  return static_cast<int64_t>(outlines().size());
}

struct Combination {
  int64_t color;
  int64_t shape;
};

std::vector<Combination> combinations(bool held_out) {
  std::vector<Combination> found;
  for (int64_t color = 0; color < num_colors(); ++color) {
    for (int64_t shape = 0; shape < num_shapes(); ++shape) {
      if (held_out_of_training(color, shape) == held_out) found.push_back({color, shape});
    }
  }
  return found;
}

const std::vector<Combination>& training_combinations() {
  static const auto all = combinations(/*held_out=*/false);
  return all;
}

const std::vector<Combination>& test_combinations() {
  static const auto all = combinations(/*held_out=*/true);
  return all;
}

template <typename T>
const T& pick(const std::vector<T>& items, RandomStream& random) {
  return items[static_cast<size_t>(random.below(static_cast<int64_t>(items.size())))];
}

std::string_view pick_word(std::initializer_list<std::string_view> words, RandomStream& random) {
  return *(words.begin() + random.below(static_cast<int64_t>(words.size())));
}

bool chance(double probability, RandomStream& random) {
  return random.uniform() < probability;
}

double inside_canvas(double radius, RandomStream& random) {
  return random.uniform(radius + kMargin, 1 - radius - kMargin);
}

SceneObject object_of(const Combination& combination) {
  return {.color = combination.color, .shape = combination.shape};
}

void place_single(SceneObject& object, RandomStream& random) {
  object.radius = random.uniform(0.18, 0.42);
  object.x = inside_canvas(object.radius, random);
  object.y = inside_canvas(object.radius, random);
}

/// Puts the objects one after the other along an axis, and across it near enough that the relation is plain to see.
void place_pair(Plan& plan, RandomStream& random) {
  using Relation = Plan::Relation;
  constexpr double kMaxOffsetAcross = 0.2;
  SceneObject& main = plan.scene.main;
  SceneObject& second = *plan.scene.second;
  main.radius = random.uniform(0.2, 0.29);
  second.radius = random.uniform(0.11, 0.15);
  plan.relation = static_cast<Relation>(random.below(4));
  const bool main_first = plan.relation == Relation::above || plan.relation == Relation::left;
  const bool vertical = plan.relation == Relation::above || plan.relation == Relation::below;

  SceneObject& first = main_first ? main : second;
  SceneObject& last = main_first ? second : main;
  const double first_along =
      random.uniform(kMargin + first.radius, 1 - kMargin - 2 * last.radius - kGap - first.radius);
  const double last_along = random.uniform(first_along + first.radius + kGap + last.radius, 1 - kMargin - last.radius);
  const double main_across = inside_canvas(main.radius, random);
  const double lowest = std::max(second.radius + kMargin, main_across - kMaxOffsetAcross);
  const double highest = std::min(1 - second.radius - kMargin, main_across + kMaxOffsetAcross);
  const double second_across = random.uniform(lowest, highest);

  (vertical ? first.y : first.x) = first_along;
  (vertical ? last.y : last.x) = last_along;
  (vertical ? main.x : main.y) = main_across;
  (vertical ? second.x : second.y) = second_across;
}

Rgb jittered(const Rgb& color, double amount, RandomStream& random) {
  const auto channel = [&](double value) { return std::clamp(value + random.uniform(-amount, amount), 0.0, 255.0); };
  const double red = channel(color.red);
  const double green = channel(color.green);
  return {red, green, channel(color.blue)};
}

double distance(const Rgb& a, const Rgb& b) {
  return std::hypot(a.red - b.red, a.green - b.green, a.blue - b.blue);
}

/// Draws a pair of greyish colours that every object stands out from.
void draw_background(Plan& plan, RandomStream& random) {
  constexpr int kTries = 12;
  constexpr double kEnoughContrast = 120;
  plan.background = static_cast<Plan::Background>(random.below(4));
  double best_contrast = -1;
  for (int attempt = 0; attempt < kTries && best_contrast < kEnoughContrast; ++attempt) {
    const double grey = random.uniform(40, 245);
    const Rgb first = jittered({grey, grey, grey}, 18, random);
    const Rgb second = plan.background == Plan::Background::plain ? first : jittered(first, 30, random);
    double contrast = 1e9;
    for (size_t i = 0; i < (plan.scene.second ? 2U : 1U); ++i) {
      contrast = std::min({contrast, distance(first, plan.object_colors[i]), distance(second, plan.object_colors[i])});
    }
    if (contrast <= best_contrast) continue;
    best_contrast = contrast;
    plan.background_colors = {first, second};
  }
}

Plan draw_plan(Split split, int64_t index, RandomStream& random) {
  Plan plan;
  if (split == Split::test) {
    const auto& classes = test_combinations();
    plan.scene.main = object_of(classes[static_cast<size_t>(index) % classes.size()]);
  } else {
    plan.scene.main = object_of(pick(training_combinations(), random));
    if (chance(kPairShare, random)) {
      do {
        plan.scene.second = object_of(pick(training_combinations(), random));
      } while (plan.scene.second->color == plan.scene.main.color);
    }
  }
  if (plan.scene.second) {
    place_pair(plan, random);
  } else {
    place_single(plan.scene.main, random);
  }
  const auto color_of = [&](const SceneObject& object) {
    return jittered(kColors[static_cast<size_t>(object.color)].value, 14, random);
  };
  plan.object_colors[0] = color_of(plan.scene.main);
  if (plan.scene.second) plan.object_colors[1] = color_of(*plan.scene.second);
  for (double& tilt : plan.tilts) tilt = random.uniform(-kMaxTilt, kMaxTilt);
  draw_background(plan, random);
  return plan;
}

RandomStream stream_of(const SyntheticOptions& options, Split split, int64_t index) {
  return {static_cast<uint64_t>(options.seed), RandomPurpose::scene, {static_cast<int64_t>(split), index}};
}

// Drawing.

cv::Vec3b pixel_of(const Rgb& color) {
  return {cv::saturate_cast<uint8_t>(color.red), cv::saturate_cast<uint8_t>(color.green),
          cv::saturate_cast<uint8_t>(color.blue)};
}

/// The colour a `share` of the way from `a` to `b`.
cv::Vec3b blend(const Rgb& a, const Rgb& b, double share) {
  return pixel_of(
      {a.red + (b.red - a.red) * share, a.green + (b.green - a.green) * share, a.blue + (b.blue - a.blue) * share});
}

void paint_background(const Plan& plan, RandomStream& random, cv::Mat& canvas) {
  using Background = Plan::Background;
  const auto& [first, second] = plan.background_colors;
  const std::array<cv::Vec3b, 2> colors{pixel_of(first), pixel_of(second)};
  const int stripe = std::max(canvas.rows / 10, 1);
  uint64_t bits = 0;
  for (int y = 0; y < canvas.rows; ++y) {
    auto* row = canvas.ptr<cv::Vec3b>(y);
    if (plan.background == Background::speckles) {
      for (int x = 0; x < canvas.cols; ++x, bits >>= 1) {
        if (x % 64 == 0) bits = random.next();
        row[x] = colors[bits & 1];
      }
      continue;
    }
    const auto color = plan.background == Background::gradient  ? blend(first, second, double(y) / canvas.rows)
                       : plan.background == Background::stripes ? colors[static_cast<size_t>(y / stripe % 2)]
                                                                : colors[0];
    std::fill_n(row, canvas.cols, color);
  }
}

void paint_object(const SceneObject& object, const Rgb& color, double tilt, cv::Mat& canvas) {
  constexpr int kFractionBits = 4;  // points in sixteenths of a pixel
  constexpr size_t kMaxContours = 2;
  constexpr size_t kMaxPoints = 40;
  const double scale = canvas.rows * (1 << kFractionBits);
  const double cosine = std::cos(tilt) * object.radius;
  const double sine = std::sin(tilt) * object.radius;

  std::array<std::array<cv::Point, kMaxPoints>, kMaxContours> points;
  std::array<const cv::Point*, kMaxContours> contours{};
  std::array<int, kMaxContours> counts{};
  size_t num_contours = 0;
  for (const auto& contour : outlines()[static_cast<size_t>(object.shape)].contours) {
    CONTRASTIVE_INTERNAL_ASSERT(num_contours < kMaxContours && contour.size() <= kMaxPoints);
    auto* target = points[num_contours].data();
    for (const auto& point : contour) {
      *target++ = {cvRound((object.x + cosine * point.x - sine * point.y) * scale - (1 << (kFractionBits - 1))),
                   cvRound((object.y + sine * point.x + cosine * point.y) * scale - (1 << (kFractionBits - 1)))};
    }
    contours[num_contours] = points[num_contours].data();
    counts[num_contours++] = static_cast<int>(contour.size());
  }
  cv::fillPoly(canvas, contours.data(), counts.data(), static_cast<int>(num_contours),
               cv::Scalar(color.red, color.green, color.blue), cv::LINE_AA, kFractionBits);
}

void paint(const Plan& plan, int64_t image_size, RandomStream& random, image::Image& image) {
  image.width = image.height = image_size;
  image.mode = image::PixelMode::rgb;
  image.palette.clear();
  image.pixels.resize(static_cast<size_t>(image_size * image_size * 3));
  const int side = static_cast<int>(image_size);
  cv::Mat canvas(side, side, CV_8UC3, image.pixels.data());
  paint_background(plan, random, canvas);
  paint_object(plan.scene.main, plan.object_colors[0], plan.tilts[0], canvas);
  if (plan.scene.second) paint_object(*plan.scene.second, plan.object_colors[1], plan.tilts[1], canvas);
}

// Captions.

std::string combination_name(int64_t color, int64_t shape) {
  return fmt::format("{} {}", kColors[static_cast<size_t>(color)].name, outlines()[static_cast<size_t>(shape)].name);
}

std::string with_size(std::string_view size, const SceneObject& object) {
  const auto name = combination_name(object.color, object.shape);
  return size.empty() ? name : fmt::format("{} {}", size, name);
}

std::string with_article(const std::string& phrase) {
  constexpr std::string_view kVowels = "aeiou";
  return fmt::format("{} {}", kVowels.find(phrase.front()) == kVowels.npos ? "a" : "an", phrase);
}

std::string_view size_word(const SceneObject& object) {
  if (object.radius < 0.23) return "small";
  return object.radius > 0.35 ? "large" : "";
}

std::string_view background_words(const Plan& plan) {
  using Background = Plan::Background;
  if (plan.background == Background::stripes) return " on a striped background";
  if (plan.background == Background::speckles) return " on a speckled background";
  const Rgb& color = plan.background_colors[0];
  const double brightness = (color.red + color.green + color.blue) / 3;
  if (brightness < 100) return " on a dark background";
  return brightness > 180 ? " on a light background" : "";
}

/// Names the main object only.
std::string short_caption(const Plan& plan, RandomStream& random) {
  const bool say_size = !plan.scene.second && chance(0.3, random);
  const auto phrase = with_size(say_size ? size_word(plan.scene.main) : "", plan.scene.main);
  const double form = random.uniform();
  if (form < 0.1) return phrase;
  if (form < 0.25) return fmt::format("{}the {}", pick_word({"", "a picture of ", "a drawing of "}, random), phrase);
  const auto beginning = pick_word({"", "a picture of ", "a drawing of ", "there is ", "this is "}, random);
  if (form < 0.4) return fmt::format("{}one {}", beginning, phrase);
  const auto ending = chance(0.15, random) ? background_words(plan) : "";
  return fmt::format("{}{}{}", beginning, with_article(phrase), ending);
}

std::string_view relation_words(Plan::Relation relation) {
  switch (relation) {
    case Plan::Relation::above:
      return "above";
    case Plan::Relation::below:
      return "below";
    case Plan::Relation::left:
      return "to the left of";
    case Plan::Relation::right:
      return "to the right of";
  }
  return "";
}

Plan::Relation opposite(Plan::Relation relation) {
  constexpr std::array kOpposites{Plan::Relation::below, Plan::Relation::above, Plan::Relation::right,
                                  Plan::Relation::left};
  return kOpposites[static_cast<size_t>(relation)];
}

/// Names both objects of a pair and how they lie.
std::string pair_caption(const Plan& plan, RandomStream& random) {
  const bool say_sizes = chance(0.5, random);
  const auto main = with_article(with_size(say_sizes ? "large" : "", plan.scene.main));
  const auto second = with_article(with_size(say_sizes ? "small" : "", *plan.scene.second));
  const auto beginning = pick_word({"", "", "a picture of ", "there is "}, random);
  const double form = random.uniform();
  if (form < 0.2) return fmt::format("{}{} and {}", beginning, main, second);
  if (form < 0.8) return fmt::format("{}{} {} {}", beginning, main, relation_words(plan.relation), second);
  return fmt::format("{}{} {} {}", beginning, second, relation_words(opposite(plan.relation)), main);
}

std::string caption_of(const Plan& plan, RandomStream& random) {
  if (plan.scene.second && chance(0.5, random)) return pair_caption(plan, random);
  return short_caption(plan, random);
}

void check(const SyntheticOptions& options) {
  if (options.samples < 1) {
    throw ConfigError(fmt::format("[synthetic] samples must be at least 1, but is {}", options.samples));
  }
  if (options.image_size < 16 || options.image_size > 4096) {
    throw ConfigError(fmt::format("[synthetic] image_size must be in [16, 4096], but is {}", options.image_size));
  }
}

void read_scene(const SyntheticOptions& options, Split split, int64_t index, Sample& sample) {
  CONTRASTIVE_INTERNAL_ASSERT(index >= 0 && index < options.samples);
  auto random = stream_of(options, split, index);
  const Plan plan = draw_plan(split, index, random);
  sample.encoded.clear();
  paint(plan, options.image_size, random, sample.drawn);
  sample.caption = caption_of(plan, random);
  sample.label = -1;
}

/// The version counts changes of what a seed draws.
std::string fingerprint_of(const SyntheticOptions& options, std::string_view split) {
  return fmt::format("synthetic version=1 split={} seed={} samples={} image_size={}", split, options.seed,
                     options.samples, options.image_size);
}

class SyntheticTestSource : public SampleSource {
 public:
  explicit SyntheticTestSource(const SyntheticOptions& options) : options_(options) { check(options); }

  int64_t size() const override { return options_.samples; }

  void read(int64_t index, RandomStream&, Sample& sample) const override {
    read_scene(options_, Split::test, index, sample);
    sample.label = index % static_cast<int64_t>(test_combinations().size());
  }

  std::string describe(int64_t index) const override {
    return fmt::format("[synthetic test set, seed {}] sample {}", options_.seed, index);
  }

  std::string fingerprint() const override { return fingerprint_of(options_, "test"); }

 private:
  SyntheticOptions options_;
};

}  // namespace

const std::vector<std::string>& synthetic_colors() {
  static const auto names = [] {
    std::vector<std::string> all;
    for (const auto& color : kColors) all.emplace_back(color.name);
    return all;
  }();
  return names;
}

const std::vector<std::string>& synthetic_shapes() {
  static const auto names = [] {
    std::vector<std::string> all;
    for (const auto& outline : outlines()) all.emplace_back(outline.name);
    return all;
  }();
  return names;
}

bool held_out_of_training(int64_t color, int64_t shape) {
  // Two diagonals of the table: each row and each column loses two of its eight entries.
  return (color + shape) % 4 == 0;
}

SyntheticSource::SyntheticSource(const SyntheticOptions& options) : options_(options) {
  check(options);
}

void SyntheticSource::read(int64_t index, RandomStream&, Sample& sample) const {
  read_scene(options_, Split::train, index, sample);
}

std::string SyntheticSource::describe(int64_t index) const {
  return fmt::format("[synthetic training set, seed {}] sample {}", options_.seed, index);
}

std::string SyntheticSource::fingerprint() const {
  return fingerprint_of(options_, "train");
}

Scene SyntheticSource::scene(int64_t index) const {
  CONTRASTIVE_INTERNAL_ASSERT(index >= 0 && index < options_.samples);
  auto random = stream_of(options_, Split::train, index);
  return draw_plan(Split::train, index, random).scene;
}

ClassificationSet synthetic_classification(const SyntheticOptions& options) {
  ClassificationSet set;
  for (const auto& [color, shape] : test_combinations()) set.class_names.push_back(combination_name(color, shape));
  // No template needs "a" or "an", which depends on the class; training captions have these forms too.
  set.templates = {"{c}", "the {c}", "one {c}", "a picture of the {c}", "a drawing of one {c}", "there is one {c}"};
  set.source = std::make_shared<SyntheticTestSource>(options);
  set.name = "synthetic";
  return set;
}

}  // namespace contrastive::data
