#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace contrastive::text {

/// The lines of CLIP's merges file that are in use ("i n", ...), checked, in the order of their ids.
/// Throws: DataError if the file can't be read or is not CLIP's merges file.
std::vector<std::string> read_merge_lines(const std::filesystem::path& merges_file);

/// How the merges file writes the bytes, in the order of their ids: UTF-8 of one printable character each.
std::vector<std::string> byte_spellings();

/// CLIP's vocabulary and its merge rules: bytes of one word to ids, and ids back to bytes. Immutable, so thread-safe.
/// Ids 0..255 are single bytes, 256..511 the same at the end of a word, 512..49405 the merges in file order.
/// Source: the released tokenizer (Radford et al. 2021).
class BytePairs {
 public:
  /// Throws: DataError if the file can't be read or is not CLIP's merges file.
  explicit BytePairs(const std::filesystem::path& merges_file);

  /// Appends the ids of one non-empty word. O(n log n) in its length.
  void append_ids(std::string_view word, std::vector<int32_t>& ids) const;

  /// The id of a word that is in the vocabulary as a whole, or -1.
  int32_t whole_word(std::string_view word) const;

  /// The bytes an id stands for, "</w>" included where it ends a word. `id` is in [0, size()).
  std::string_view bytes(int32_t id) const { return bytes_[static_cast<size_t>(id)]; }
  int32_t size() const { return static_cast<int32_t>(bytes_.size()); }

 private:
  /// A slot of the hash table from two adjacent ids to the id they merge to. A lower id is an earlier, stronger merge.
  struct Merge {
    uint32_t pair;
    int32_t merged;
  };

  void add_byte_symbols();
  void add_merges(const std::vector<std::string>& lines, const std::string& file);
  void insert_merge(int32_t left, int32_t right, int32_t merged);
  void index_whole_words();

  /// The id that two adjacent ids merge to, or -1.
  int32_t merged(int32_t left, int32_t right) const;

  std::vector<std::string> bytes_;
  std::vector<int32_t> byte_ids_;
  std::vector<Merge> merges_;
  std::vector<int32_t> whole_words_;
};

}  // namespace contrastive::text
