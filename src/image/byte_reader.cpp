#include "byte_reader.h"

#include <fmt/format.h>

#include "contrastive/core/error.h"

namespace contrastive::image::detail {

void ByteReader::fail_truncated() const {
  throw DataError(fmt::format("image: {} is truncated after {} bytes", format_, bytes_.size()));
}

void ByteReader::fail_damaged(const std::string& reason) const {
  throw DataError(fmt::format("image: {} of {} bytes is damaged: {}", format_, bytes_.size(), reason));
}

}  // namespace contrastive::image::detail
