#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "contrastive/core/export.h"
#include "contrastive/data/batch.h"
#include "contrastive/data/source.h"
#include "contrastive/image/transform.h"
#include "contrastive/text/tokenizer.h"

namespace contrastive::data {

/// What happens at a sample that can't be read, decoded or captioned.
enum class BadSamplePolicy {
  fail,  ///< training stops with a message that names it
  skip,  ///< another sample takes its place; it is counted, and the first of each kind is logged
};

struct TrainLoaderOptions {
  int64_t batch_size = 256;     ///< samples of one step over all ranks; a multiple of world_size
  int64_t image_size = 224;     ///< pixels, both sides
  int64_t feature_width = 0;    ///< above 0: the source has features of this width (EmbeddingCacheSource), not images
  int64_t context_length = 77;  ///< ids per caption at most, start and end included
  bool cut_tokens = true;       ///< a batch's rows end with its longest caption; else they keep the context length
  image::TrainCropOptions crop;
  uint64_t seed = 0;
  int64_t rank = 0;
  int64_t world_size = 1;
  int64_t workers = 2;           ///< decoding threads
  int64_t prefetch_batches = 0;  ///< batches made ahead; 0 on a CPU, where threads in the background slow the step down
  BadSamplePolicy on_bad_sample = BadSamplePolicy::fail;
  int64_t max_bad_samples = 1000;  ///< different samples that may be skipped; one more is an error
  bool pin_memory = false;         ///< page-locked memory, for copies to a GPU
  int64_t first_step = 0;          ///< where the run starts or goes on
};

/// The bad samples met so far on this rank (since the loader was made), each counted once however often it came up.
struct BadSampleReport {
  int64_t total = 0;
  std::map<std::string, int64_t> by_reason;  ///< "truncated image", "undecodable image", "caption missing", ...
};

/// Makes the batches of a training run.
///
/// Step s takes positions [s B, (s + 1) B) of the endless sequence of epochs, B = batch_size, in the order of
/// SampleOrder; rank r of W takes [s B + r B / W, s B + (r + 1) B / W). Every random draw is keyed by (seed, epoch,
/// position within the epoch), so that a batch is a pure function of (seed, step, rank): not of threads, of prefetching
/// or of where the run started, and the ranks' batches one after the other are the batch of a single rank. An error is
/// thrown at the batch it belongs to, again at each further call. To be used by one thread.
///
/// With features instead of images the order, the choice among captions and the substitutes of bad samples are those of
/// a run with images; which of several views is seen is one draw more.
class CONTRASTIVE_API TrainLoader {
 public:
  /// `tokenizer` may be null if the source has tokens.
  /// Throws: ConfigError if an option is out of range; DataError if the source is empty.
  TrainLoader(std::shared_ptr<const SampleSource> source, std::shared_ptr<const text::Tokenizer> tokenizer,
              const TrainLoaderOptions& options);

  /// Stops the threads; waits for the images being decoded at that moment.
  ~TrainLoader();

  TrainLoader(const TrainLoader&) = delete;
  TrainLoader& operator=(const TrainLoader&) = delete;

  /// The batch of the next step: images [B / W, S, S, 3] or features [B / W, D], tokens [B / W, T] with T the longest
  /// caption of these (or the context length, without cut_tokens).
  /// Throws: DataError that names the sample (policy `fail`), or that tells of too many bad ones.
  Batch next();

  /// The step whose batch next() returns.
  int64_t step() const;

  /// How long the last next() took, decoding included where nothing is prefetched.
  double last_wait_ms() const;

  /// Covers the batches that next() returned.
  BadSampleReport bad_samples() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace contrastive::data
