#include "contrastive/data/source.h"

namespace contrastive::data {

void SampleSource::read_view(int64_t index, int64_t view, RandomStream& random, Sample& sample) const {
  CONTRASTIVE_INTERNAL_ASSERT(view == 0);
  read(index, random, sample);
}

std::vector<std::string> SampleSource::read_with_all_captions(int64_t index, Sample& sample) const {
  RandomStream random(/*seed=*/0, RandomPurpose::caption, {index});
  read(index, random, sample);
  return {sample.caption};
}

}  // namespace contrastive::data
