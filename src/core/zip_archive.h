#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace contrastive::detail {

/// One file of a zip archive. Its data was checked to lie within the archive, apart from every other member's.
struct ZipMember {
  std::string_view name;  ///< points into the archive
  uint64_t begin;         ///< of the data, in bytes from the start of the archive
  uint64_t stored_bytes;  ///< as they lie in the archive
  uint64_t bytes;         ///< after inflating
  uint32_t crc32;
  bool is_deflated;
};

/// The directory of a zip archive in memory; zip64 is understood, stored and deflated members too.
/// Every number is checked before it is believed, and what all deflated members may grow to is bounded by the archive's
/// size. Source: PKWARE APPNOTE 6.3.
class ZipArchive {
 public:
  /// `archive` must outlive the object; `where` begins every message.
  /// Throws: CheckpointError if the archive is truncated, damaged, split, encrypted, has two members of one name,
  /// members that overlap, or a compression that is not supported.
  ZipArchive(std::string where, std::span<const uint8_t> archive);

  /// Sorted by name.
  const std::vector<ZipMember>& members() const { return members_; }

  /// nullptr if there is none.
  const ZipMember* find(std::string_view name) const;

  /// What all members take once inflated.
  uint64_t total_bytes() const { return total_bytes_; }

  /// The data as it lies in the archive.
  std::span<const uint8_t> stored(const ZipMember& member) const;

  /// Copies or inflates a member into `target`, which has its size.
  /// Throws: CheckpointError if the member does not inflate to its size and checksum.
  void read(const ZipMember& member, std::span<uint8_t> target) const;

 private:
  struct Directory;
  struct Extent;

  [[noreturn]] void fail(const std::string& message) const;
  template <typename Integer>
  Integer get(uint64_t position) const;
  std::string_view text(uint64_t position, uint64_t size) const;
  uint64_t find_end_record() const;
  Directory read_end_record() const;
  void widen_from_zip64(uint64_t end_record, Directory& directory) const;
  uint64_t read_entry(uint64_t position, const Directory& directory, std::vector<Extent>& extents);
  void widen_entry(std::string_view extra, ZipMember& member, uint64_t& header) const;
  uint64_t data_begin(uint64_t header, uint64_t end, const ZipMember& member) const;
  void refuse_overlaps(std::vector<Extent>& extents) const;
  void refuse_duplicates() const;
  void bound_inflation() const;

  std::string where_;
  std::span<const uint8_t> archive_;
  std::vector<ZipMember> members_;
  uint64_t total_bytes_ = 0;
};

}  // namespace contrastive::detail
