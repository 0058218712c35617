#include "contrastive/core/file.h"

#include <csignal>
#include <cstdlib>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "contrastive/core/error.h"

#include "tests/support/errors.h"
#include "tests/support/paths.h"

namespace contrastive {
namespace {

namespace fs = std::filesystem;

void put(const fs::path& file, const std::string& content) {
  std::ofstream(file, std::ios::binary) << content;
}

size_t entries_in(const fs::path& folder) {
  return static_cast<size_t>(std::distance(fs::directory_iterator(folder), fs::directory_iterator()));
}

/// Lets every write beyond `bytes` of a file fail with EFBIG, as a full disk would with ENOSPC.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) : old_handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    getrlimit(RLIMIT_FSIZE, &old_limit_);
    const rlimit limit{bytes, old_limit_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    setrlimit(RLIMIT_FSIZE, &old_limit_);
    std::signal(SIGXFSZ, old_handler_);
  }

 private:
  rlimit old_limit_{};
  void (*old_handler_)(int);
};

class FileTest : public ::testing::Test {
 protected:
  fs::path at(const std::string& name) const { return folder_.path() / name; }
  std::string named(const std::string& name) const { return "[" + at(name).string() + "] "; }

  test::TemporaryDirectory folder_;
};

TEST_F(FileTest, ReadsEveryByte) {
  const std::string content("a\0\xff\r\n\x1a", 6);
  put(at("bytes"), content);
  EXPECT_EQ(read_text_file(at("bytes")), content);
  put(at("empty"), "");
  EXPECT_EQ(read_text_file(at("empty")), "");
}

TEST_F(FileTest, RefusesWhatIsMissingTooLargeOrNoFile) {
  put(at("ten"), "0123456789");
  EXPECT_EQ(read_text_file(at("ten"), 10).size(), 10u);
  EXPECT_EQ(test::message_of([&] { read_text_file(at("ten"), 9); }),
            named("ten") + "has 10 bytes, but at most 9 are expected here");
  EXPECT_EQ(test::message_of([&] { read_text_file(at("none")); }),
            named("none") + "can't be read: No such file or directory");
  EXPECT_EQ(test::message_of([&] { read_text_file(folder_.path()); }),
            "[" + folder_.path().string() + "] can't be read: Is a directory");
  EXPECT_THROW(read_text_file("/dev/zero"), Error);
}

TEST_F(FileTest, WritesAndReplacesAtomically) {
  write_file_atomically(at("file"), "old");
  EXPECT_EQ(read_text_file(at("file")), "old");
  const std::string content("new\0content", 11);
  write_file_atomically(at("file"), content);
  EXPECT_EQ(read_text_file(at("file")), content);
  EXPECT_EQ(entries_in(folder_.path()), 1u);
}

TEST_F(FileTest, KeepsTheOldFileWhenWritingFails) {
  put(at("file"), "old");
  {
    const FileSizeLimit limit(4096);
    EXPECT_EQ(test::message_of([&] { write_file_atomically(at("file"), std::string(10'000, 'x')); }),
              named("file") + "writing the file failed: File too large");
  }
  EXPECT_EQ(read_text_file(at("file")), "old");
  EXPECT_EQ(entries_in(folder_.path()), 1u) << "a part of the new file was left behind";
}

TEST_F(FileTest, NamesTheReasonWhenTheFolderIsMissingOrTheNameTaken) {
  EXPECT_EQ(test::message_of([&] { write_file_atomically(at("none") / "file", "x"); }),
            named("none/file") + "creating the file failed: No such file or directory");
  fs::create_directories(at("taken") / "child");
  EXPECT_EQ(test::message_of([&] { write_file_atomically(at("taken"), "x"); }),
            named("taken") + "renaming to the file failed: Is a directory");
  EXPECT_EQ(entries_in(folder_.path()), 1u);
}

TEST_F(FileTest, ThreadsWritingOneFileLeaveTheContentOfOneOfThem) {
  constexpr size_t kSize = 200'000;
  std::vector<std::thread> threads;
  for (const char letter : {'a', 'b', 'c', 'd'}) {
    threads.emplace_back([&, letter] {
      for (int i = 0; i < 10; ++i) write_file_atomically(at("shared"), std::string(kSize, letter));
    });
  }
  for (auto& thread : threads) thread.join();
  const auto content = read_text_file(at("shared"));
  EXPECT_EQ(content, std::string(kSize, content.front()));
  EXPECT_EQ(entries_in(folder_.path()), 1u);
}

TEST_F(FileTest, MapsFilesAndRefusesOthers) {
  put(at("file"), "abc");
  const MappedFile mapped(at("file"));
  EXPECT_EQ(std::string(mapped.bytes().begin(), mapped.bytes().end()), "abc");
  put(at("empty"), "");
  EXPECT_TRUE(MappedFile(at("empty")).bytes().empty());

  EXPECT_EQ(test::message_of([&] { MappedFile file(at("none")); }),
            named("none") + "can't be opened: No such file or directory");
  EXPECT_EQ(test::message_of([&] { MappedFile file(folder_.path()); }),
            "[" + folder_.path().string() + "] is not a regular file");
  ASSERT_EQ(mkfifo(at("pipe").c_str(), 0600), 0);
  EXPECT_EQ(test::message_of([&] { MappedFile file(at("pipe")); }), named("pipe") + "is not a regular file");
}

TEST_F(FileTest, FindsResourcesUnderTheGivenFolderFirst) {
  fs::create_directories(at("clip"));
  put(at("clip/words"), "x");
  setenv("CONTRASTIVE_RESOURCES", folder_.path().c_str(), 1);
  EXPECT_EQ(find_resource("clip/words"), at("clip/words"));
  const auto message = test::message_of([] { find_resource("clip/none"); });
  unsetenv("CONTRASTIVE_RESOURCES");
  EXPECT_EQ(message.find("[clip/none] not found; looked at: " + at("clip/none").string() + ", "), 0u) << message;
  EXPECT_NE(message.find("/share/contrastive/clip/none"), std::string::npos) << message;
}

}  // namespace
}  // namespace contrastive
