#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "contrastive/core/export.h"
#include "contrastive/core/random.h"
#include "contrastive/data/classification_set.h"
#include "contrastive/data/source.h"

namespace contrastive::data {

struct SyntheticOptions {
  int64_t seed = 0;
  int64_t samples = 100'000;
  int64_t image_size = 64;  ///< pixels, both sides of the drawn canvas
};

/// One coloured shape of a scene. Lengths are shares of the canvas's side, from its top left corner.
struct SceneObject {
  int64_t color = 0;  ///< index into synthetic_colors()
  int64_t shape = 0;  ///< index into synthetic_shapes()
  double x = 0;       ///< of the centre
  double y = 0;
  double radius = 0;
};

/// What a synthetic image shows: one object, or a larger and a smaller one.
struct Scene {
  SceneObject main;
  std::optional<SceneObject> second;  ///< always smaller than `main`, and of another colour
};

CONTRASTIVE_API const std::vector<std::string>& synthetic_colors();
CONTRASTIVE_API const std::vector<std::string>& synthetic_shapes();

/// Whether a combination is kept for the test: a quarter of all, the same number for each colour and each shape,
/// whatever the seed. Naming one takes a model that learned colour and shape apart from each other.
CONTRASTIVE_API bool held_out_of_training(int64_t color, int64_t shape);

/// Procedural training data: pictures of one or two coloured shapes with captions in plain English ("a picture of an
/// orange star", "a large red circle above a small blue square"); a caption may name the main object only.
/// Sample number i is a pure function of (seed, i); held-out combinations never appear, not even as second object.
/// Thread-safe. For set-up tests, tutorials and measurements without any download.
class CONTRASTIVE_API SyntheticSource : public SampleSource {
 public:
  /// Throws: ConfigError if samples is less than 1, or image_size is not in [16, 4096].
  explicit SyntheticSource(const SyntheticOptions& options);

  int64_t size() const override { return options_.samples; }
  void read(int64_t index, RandomStream& random, Sample& sample) const override;
  std::string describe(int64_t index) const override;
  std::string fingerprint() const override;

  /// What sample `index` shows.
  Scene scene(int64_t index) const;

 private:
  SyntheticOptions options_;
};

/// The zero-shot test that belongs to SyntheticSource: pictures of one object of a held-out combination; the classes
/// are these combinations ("orange star"), equally frequent. Image i is a pure function of (seed, i), and is none of
/// the training images of that seed. Throws: ConfigError as SyntheticSource.
CONTRASTIVE_API ClassificationSet synthetic_classification(const SyntheticOptions& options);

}  // namespace contrastive::data
