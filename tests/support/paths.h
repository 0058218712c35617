#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

namespace contrastive::test {

/// Where the parity data of the reference libraries lies: $CONTRASTIVE_FIXTURES, else ../shared/fixtures beside the
/// repository; nothing if that folder does not exist.
std::optional<std::filesystem::path> fixtures_dir();

/// The same of the LiT reference libraries: $CONTRASTIVE_FIXTURES_LIT, else ../shared/fixtures_lit.
std::optional<std::filesystem::path> lit_fixtures_dir();

/// Where real shards and prompts lie: $CONTRASTIVE_DATA, else ../shared/data beside the repository.
std::optional<std::filesystem::path> data_dir();

/// The repository's own tests/fixtures.
std::filesystem::path own_fixtures_dir();

/// The one file of a folder whose name starts and ends so; throws if there is none.
std::filesystem::path only_file(const std::filesystem::path& folder, std::string_view start, std::string_view end);

/// CLIP's merges file: $CONTRASTIVE_RESOURCES/clip/..., or where set-up put it; throws if there is none.
std::filesystem::path merges_file();

/// A fresh empty folder, removed with the object.
class TemporaryDirectory {
 public:
  TemporaryDirectory();
  ~TemporaryDirectory();
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

}  // namespace contrastive::test
