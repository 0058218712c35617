#include "tests/support/paths.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <system_error>

#include "contrastive/core/file.h"

namespace contrastive::test {
namespace fs = std::filesystem;
namespace {

std::optional<fs::path> outside_folder(const char* variable, const char* name) {
  const char* given = std::getenv(variable);
  const auto folder = given != nullptr && *given != '\0'
                          ? fs::path(given)
                          : fs::path(CONTRASTIVE_SOURCE_DIR).parent_path() / "shared" / name;
  std::error_code error;
  if (!fs::is_directory(folder, error)) return std::nullopt;
  return folder;
}

}  // namespace

std::optional<fs::path> fixtures_dir() {
  return outside_folder("CONTRASTIVE_FIXTURES", "fixtures");
}

std::optional<fs::path> lit_fixtures_dir() {
  return outside_folder("CONTRASTIVE_FIXTURES_LIT", "fixtures_lit");
}

std::optional<fs::path> data_dir() {
  return outside_folder("CONTRASTIVE_DATA", "data");
}

fs::path own_fixtures_dir() {
  return fs::path(CONTRASTIVE_SOURCE_DIR) / "tests" / "fixtures";
}

fs::path only_file(const fs::path& folder, std::string_view start, std::string_view end) {
  for (const auto& entry : fs::directory_iterator(folder)) {
    const auto name = entry.path().filename().string();
    if (name.starts_with(start) && name.ends_with(end)) return entry.path();
  }
  throw std::runtime_error(folder.string() + " has no file " + std::string(start) + "*" + std::string(end));
}

fs::path merges_file() {
  return find_resource("clip/bpe_simple_vocab_16e6.txt.gz");
}

TemporaryDirectory::TemporaryDirectory() {
  auto pattern = (fs::temp_directory_path() / "contrastive_test_XXXXXX").string();
  if (mkdtemp(pattern.data()) == nullptr) {
    throw std::runtime_error("making a folder " + pattern + " failed: " + std::strerror(errno));
  }
  path_ = pattern;
}

TemporaryDirectory::~TemporaryDirectory() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

}  // namespace contrastive::test
