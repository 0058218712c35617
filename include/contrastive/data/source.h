#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "contrastive/core/export.h"
#include "contrastive/core/random.h"
#include "contrastive/image/image.h"

namespace contrastive::data {

/// One image with its caption or its class, as a source hands it out. The image is either encoded (`encoded` is not
/// empty) or drawn (`drawn` has pixels).
struct Sample {
  std::vector<uint8_t> encoded;  ///< a JPEG, PNG or WebP file
  image::Image drawn;            ///< rgb
  std::string caption;           ///< UTF-8; empty if the source has labels only
  int64_t label = -1;            ///< class index, or -1
};

/// A fixed set of samples that can be read at any index, from any thread.
class CONTRASTIVE_API SampleSource {
 public:
  virtual ~SampleSource() = default;

  virtual int64_t size() const = 0;

  /// Reads one sample into `sample`, whose memory is reused. Where a sample has several captions, `random` picks one.
  /// Throws: DataError; the message does not repeat `describe(index)`.
  virtual void read(int64_t index, RandomStream& random, Sample& sample) const = 0;

  /// How messages name a sample: "[shards/00017.tar] sample 000170042".
  virtual std::string describe(int64_t index) const = 0;

  /// Changes when the set's content or order changes; stored in checkpoints, so that a resumed run notices.
  virtual std::string fingerprint() const = 0;

  /// Bytes that this object has read from files so far.
  virtual int64_t bytes_read() const { return 0; }
};

}  // namespace contrastive::data
