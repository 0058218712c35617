#pragma once

#include <cstdint>

namespace contrastive::data::detail {

constexpr int64_t kTarBlock = 512;

/// A ustar header block. Source: POSIX.1-2017, pax, "ustar Interchange Format".
struct TarHeader {
  char name[100];
  char mode[8];
  char uid[8];
  char gid[8];
  char size[12];
  char mtime[12];
  char checksum[8];
  char type;
  char link_name[100];
  char magic[6];
  char version[2];
  char user[32];
  char group[32];
  char device_major[8];
  char device_minor[8];
  char prefix[155];
  char padding[12];
};
static_assert(sizeof(TarHeader) == kTarBlock);

/// Bytes a content takes in the archive.
constexpr int64_t padded_to_block(int64_t bytes) {
  return (bytes + kTarBlock - 1) / kTarBlock * kTarBlock;
}

}  // namespace contrastive::data::detail
