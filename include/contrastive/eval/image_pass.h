#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <torch/types.h>

#include "contrastive/core/export.h"
#include "contrastive/data/batch.h"
#include "contrastive/data/source.h"
#include "contrastive/distributed/process_group.h"
#include "contrastive/image/transform.h"
#include "contrastive/models/clip_model.h"

namespace contrastive::eval {

/// Which features of an image are meant.
enum class FeatureStage {
  tower,       ///< before the projection, as the tower gives them: [B, W]
  projection,  ///< behind the projection, as the model gives them: [B, E]
  embedding,   ///< the same, L2-normalised
  places,      ///< that and the embedding of each place in the image, each L2-normalised: [B, (1 + T) E]
};

struct ImagePassOptions {
  FeatureStage stage = FeatureStage::embedding;
  int64_t batch_size = 256;
  int64_t workers = 2;            ///< decoding threads
  bool bf16 = false;              ///< matrix products in bf16; features stay fp32
  bool skip_bad_samples = false;  ///< leave out samples that can't be read; else the first of them is an error
  /// Called on the first rank after each batch: samples done by all ranks so far (an estimate), and in all.
  std::function<void(int64_t done, int64_t total)> on_progress = {};
};

/// The images of one batch that could be read.
struct FeatureBatch {
  torch::Tensor features = {};                         ///< [B, ...] by the stage, fp32, on the model's device
  torch::Tensor labels = {};                           ///< [B] int64 in CPU memory, -1 where the source has none
  std::vector<std::vector<int64_t>> label_lists = {};  ///< [B], of multi-label sets
  std::vector<int64_t> samples = {};                   ///< [B] positions in the source
};

/// A sample that was left out, with the reason.
struct SkippedSample {
  std::string name;
  std::string reason;
};

/// What a pass left out, on all ranks together.
struct SkippedSamples {
  int64_t count = 0;
  std::vector<SkippedSample> first;  ///< ten at most
};

/// Encodes samples [begin, end) of a source and hands over batch after batch, in eval mode; the model's mode is
/// restored. Over several ranks each takes every W-th batch: the batches are those of a single rank, and a rank sees
/// its own only. Images are decoded beside the computation where the model is on a GPU. Throws: DataError naming the
/// sample if one can't be read and is not to be left out, or if none is left.
CONTRASTIVE_API SkippedSamples encode_images(models::ClipModel& model, const image::PreprocessSpec& preprocess,
                                             const data::SampleSource& source, int64_t begin, int64_t end,
                                             const ImagePassOptions& options, const distributed::ProcessGroup& group,
                                             const std::function<void(const FeatureBatch&)>& use);

/// The features of many images, in the order of their source.
struct CollectedFeatures {
  torch::Tensor features;        ///< [n, ...] by the stage, fp32, in CPU memory
  torch::Tensor labels;          ///< [n] int64
  std::vector<int64_t> samples;  ///< [n] positions in the source; those that were left out are missing
  SkippedSamples skipped;
};

/// The same pass, whose features every rank gets all of, with the bits of a single rank's.
CONTRASTIVE_API CollectedFeatures collect_features(models::ClipModel& model, const image::PreprocessSpec& preprocess,
                                                   const data::SampleSource& source, int64_t begin, int64_t end,
                                                   const ImagePassOptions& options,
                                                   const distributed::ProcessGroup& group = {});

}  // namespace contrastive::eval
