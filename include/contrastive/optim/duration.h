#pragma once

#include <cstdint>
#include <string>

#include "contrastive/core/export.h"

namespace contrastive::optim {

/// What durations are measured against; 0 is unknown.
struct DurationScale {
  int64_t batch_size = 0;  ///< samples of a step, over all ranks
  int64_t samples_per_epoch = 0;
  int64_t total_steps = 0;  ///< of the run
};

/// A length of training in one of four units.
class CONTRASTIVE_API Duration {
 public:
  /// In steps.
  explicit Duration(int64_t steps = 0) : count_(static_cast<double>(steps)) {}

  /// "10000" or "10000 steps", "5e6 samples", "2.5 epochs", "3 %" (of the run's steps); singulars and "examples" too.
  /// Throws: ConfigError that quotes the text.
  static Duration parse(const std::string& text);

  /// The nearest number of steps (a half goes to the even one), at least 1 unless the duration is 0.
  /// Throws: ConfigError if what the unit needs is unknown, or the result is absurdly long.
  int64_t steps(const DurationScale& scale) const;

  /// As parse reads it.
  std::string to_string() const;

 private:
  enum class Unit { steps, samples, epochs, percent };

  double count_ = 0;
  Unit unit_ = Unit::steps;
};

}  // namespace contrastive::optim
