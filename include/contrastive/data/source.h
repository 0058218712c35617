#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "contrastive/core/error.h"
#include "contrastive/core/export.h"
#include "contrastive/core/random.h"
#include "contrastive/image/image.h"

namespace contrastive::data {

/// One image with its caption or its class, as a source hands it out. The image is either encoded (`encoded` is not
/// empty), drawn (`drawn` has pixels), or what a tower made of it (`features` is not empty); then the caption is in
/// `tokens`.
struct Sample {
  std::vector<uint8_t> encoded;  ///< a JPEG, PNG or WebP file
  image::Image drawn;            ///< rgb
  std::string caption;           ///< UTF-8; empty if the source has labels only
  int64_t label = -1;            ///< class index, or -1
  std::vector<int64_t> labels;   ///< every class that the image shows, rising; of multi-label sets only
  std::vector<float> features;   ///< [D], before the projection
  std::vector<int32_t> tokens;   ///< [context length], padded
  int64_t num_tokens = 0;        ///< ids in `tokens` before the padding
};

/// A sample that was found to be no use when its set was looked through, with the class of the reason.
class CONTRASTIVE_API BadSampleError : public DataError {
 public:
  BadSampleError(std::string reason, const std::string& message) : DataError(message), reason_(std::move(reason)) {}

  /// "truncated image", ...: a key of BadSampleReport::by_reason.
  const std::string& reason() const { return reason_; }

 private:
  std::string reason_;
};

/// A fixed set of samples that can be read at any index, from any thread.
class CONTRASTIVE_API SampleSource {
 public:
  virtual ~SampleSource() = default;

  virtual int64_t size() const = 0;

  /// Reads one sample into `sample`, whose memory is reused. Where a sample has several captions, `random` picks one.
  /// Throws: DataError; the message does not repeat `describe(index)`.
  virtual void read(int64_t index, RandomStream& random, Sample& sample) const = 0;

  /// The same of view number `view` in [0, num_views()).
  virtual void read_view(int64_t index, int64_t view, RandomStream& random, Sample& sample) const;

  /// How many variants of each image there are to choose from.
  virtual int64_t num_views() const { return 1; }

  /// As read(). Returns: all captions of the sample, in the order from which read() picks; sample.caption is the first.
  virtual std::vector<std::string> read_with_all_captions(int64_t index, Sample& sample) const;

  /// The sample's own name, without its place.
  virtual std::string key(int64_t index) const { return describe(index); }

  /// How messages name a sample: "[shards/00017.tar] sample 000170042".
  virtual std::string describe(int64_t index) const = 0;

  /// Changes when the set's content or order changes; stored in checkpoints, so that a resumed run notices.
  virtual std::string fingerprint() const = 0;

  /// What else decides which image and captions a sample has: options, in words.
  virtual std::string settings() const { return {}; }

  /// Bytes that this object has read from files so far.
  virtual int64_t bytes_read() const { return 0; }
};

}  // namespace contrastive::data
