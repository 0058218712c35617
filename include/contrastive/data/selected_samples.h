#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "contrastive/data/source.h"

namespace contrastive::data {

/// Some samples of another source, which must live as long, in the order of `indices`.
class SelectedSamples : public SampleSource {
 public:
  SelectedSamples(const SampleSource& source, std::vector<int64_t> indices)
      : source_(source), indices_(std::move(indices)) {}

  int64_t size() const override { return static_cast<int64_t>(indices_.size()); }
  void read(int64_t index, RandomStream& random, Sample& sample) const override {
    source_.read(index_of(index), random, sample);
  }
  std::string key(int64_t index) const override { return source_.key(index_of(index)); }
  std::string describe(int64_t index) const override { return source_.describe(index_of(index)); }
  std::string fingerprint() const override { return source_.fingerprint(); }

 private:
  int64_t index_of(int64_t index) const { return indices_[static_cast<size_t>(index)]; }

  const SampleSource& source_;
  std::vector<int64_t> indices_;
};

}  // namespace contrastive::data
