#include "jpeg_memory.h"

#include <algorithm>
#include <cstdlib>

#include <jerror.h>

namespace contrastive::image::detail {
namespace {

/// libjpeg's vector code reads and writes whole vectors past the end of a row.
constexpr size_t kAlignment = 64;
constexpr size_t kSmallestBlock = size_t{256} << 10;
constexpr size_t kLargestKept = size_t{64} << 20;
constexpr size_t kMaxBlocks = 64;

size_t aligned(size_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

}  // namespace

JpegMemory::~JpegMemory() {
  for (const auto& block : blocks_) std::free(block.data);
}

/// Several blocks become one of their size, and too large ones are given back.
void JpegMemory::reset() {
  size_t total = 0;
  for (const auto& block : blocks_) total += block.bytes;
  used_ = 0;
  if (blocks_.size() <= 1 && total <= kLargestKept) return;
  for (const auto& block : blocks_) std::free(block.data);
  blocks_.clear();
  if (total > kLargestKept) return;
  if (auto* data = static_cast<char*>(std::aligned_alloc(kAlignment, total))) blocks_.push_back({data, total});
}

void* JpegMemory::take(size_t bytes) {
  bytes = aligned(bytes);
  if (blocks_.empty() || blocks_.back().bytes - used_ < bytes) {
    // Each block doubles what there is, so that their number stays small and their list needs no memory here.
    const auto size = std::max({bytes, kSmallestBlock, blocks_.empty() ? size_t{0} : 2 * blocks_.back().bytes});
    if (blocks_.size() == kMaxBlocks) return nullptr;
    auto* data = static_cast<char*>(std::aligned_alloc(kAlignment, size));
    if (data == nullptr) return nullptr;
    blocks_.push_back({data, size});
    used_ = 0;
  }
  char* taken = blocks_.back().data + used_;
  used_ += bytes;
  return taken;
}

void* JpegMemory::take_or_fail(j_common_ptr common, size_t bytes) {
  void* taken = static_cast<JpegMemory*>(common->client_data)->take(bytes);
  if (taken == nullptr) ERREXIT1(common, JERR_OUT_OF_MEMORY, 0);
  return taken;
}

void* JpegMemory::take_block(j_common_ptr common, int, size_t bytes) {
  return take_or_fail(common, bytes);
}

JSAMPARRAY JpegMemory::take_rows(j_common_ptr common, int, JDIMENSION width, JDIMENSION rows) {
  const size_t stride = aligned(width) + kAlignment;
  auto* pointers = static_cast<JSAMPARRAY>(take_or_fail(common, rows * sizeof(JSAMPROW)));
  auto* samples = static_cast<JSAMPROW>(take_or_fail(common, rows * stride));
  for (JDIMENSION y = 0; y < rows; ++y) pointers[y] = samples + y * stride;
  return pointers;
}

void JpegMemory::serve(jpeg_decompress_struct& decoder) {
  blocks_.reserve(kMaxBlocks);
  reset();
  decoder.mem->alloc_small = take_block;
  decoder.mem->alloc_large = take_block;
  decoder.mem->alloc_sarray = take_rows;
}

}  // namespace contrastive::image::detail
