// Archives of other writers (Python's zipfile, PyTorch's miniz) are those of tests/fixtures/torch_file.
#include "core/zip_archive.h"

#include <algorithm>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "contrastive/core/error.h"
#include "contrastive/core/file.h"

#include "tests/support/paths.h"
#include "tests/support/zip.h"

namespace contrastive {
namespace {

using detail::ZipArchive;
using test::little_endian;
using test::zip_bytes;
using test::ZipEntry;

std::span<const uint8_t> as_bytes(const std::string& text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

std::string content(const ZipArchive& archive, std::string_view name) {
  const auto* member = archive.find(name);
  if (member == nullptr) return "no member";
  std::string result(member->bytes, '\0');
  archive.read(*member, {reinterpret_cast<uint8_t*>(result.data()), result.size()});
  return result;
}

/// The error of opening these bytes and reading all members, without the name of the file.
std::string error_of(const std::string& bytes) {
  try {
    const ZipArchive archive("file.pt", as_bytes(bytes));
    for (const auto& member : archive.members()) content(archive, member.name);
  } catch (const CheckpointError& error) {
    const std::string message = error.what();
    EXPECT_EQ(message.substr(0, 10), "[file.pt] ");
    return message.substr(std::min<size_t>(10, message.size()));
  }
  return "no error";
}

TEST(ZipArchiveTest, ReadsWhatPythonAndPyTorchWrote) {
  for (const auto* name : {"views.pt", "views_unaligned.pt", "views_deflated.pt"}) {
    SCOPED_TRACE(name);
    const auto bytes = read_text_file(test::own_fixtures_dir() / "torch_file" / name);
    const ZipArchive archive(name, as_bytes(bytes));
    EXPECT_EQ(archive.members().size(), 12u);
    EXPECT_EQ(content(archive, "views/byteorder"), "little");
    EXPECT_EQ(content(archive, "views/version"), "3\n");
    const auto floats = content(archive, "views/data/0");
    ASSERT_EQ(floats.size(), 24 * sizeof(float));
    for (size_t i = 0; i < 24; ++i) EXPECT_EQ(reinterpret_cast<const float*>(floats.data())[i], static_cast<float>(i));
    EXPECT_EQ(archive.find("views/data/99"), nullptr);
  }
}

TEST(ZipArchiveTest, ReadsStoredDeflatedAndZip64Members) {
  std::string long_text;
  for (int i = 0; i < 100'000; ++i) long_text += std::to_string(i);
  for (const bool zip64 : {false, true}) {
    const auto bytes = zip_bytes({{.name = "b", .data = long_text, .deflate = true, .zip64 = zip64},
                                  {.name = "a/", .data = "", .zip64 = zip64},
                                  {.name = "c", .data = "stored", .zip64 = zip64},
                                  {.name = "d", .data = "", .deflate = true}},
                                 {.zip64 = zip64, .comment = "PK\5\6 is what a comment may hold"});
    const ZipArchive archive("file", as_bytes(bytes));
    ASSERT_EQ(archive.members().size(), 4u);
    EXPECT_EQ(archive.members()[0].name, "a/");
    EXPECT_EQ(content(archive, "b"), long_text);
    EXPECT_EQ(content(archive, "c"), "stored");
    EXPECT_EQ(content(archive, "d"), "");
    EXPECT_EQ(archive.total_bytes(), long_text.size() + 6);
  }
}

TEST(ZipArchiveTest, EveryTruncationIsAnError) {
  const auto whole = read_text_file(test::own_fixtures_dir() / "torch_file" / "views_deflated.pt");
  for (size_t size = 0; size < whole.size(); ++size) ASSERT_NE(error_of(whole.substr(0, size)), "no error") << size;
  EXPECT_EQ(error_of(whole), "no error");
  EXPECT_EQ(error_of(""), "has 0 bytes without the end of a zip archive; the file is truncated or damaged");
  EXPECT_EQ(error_of(whole + "x"),
            std::to_string(whole.size() + 1)
                .insert(0, "has ")
                .append(" bytes without the end of a zip archive; the file is truncated or damaged"));
}

TEST(ZipArchiveTest, RefusesADirectoryThatDoesNotFitTheFile) {
  const ZipEntry entry{.name = "a", .data = "data"};
  EXPECT_EQ(error_of(zip_bytes({entry})), "no error");
  EXPECT_EQ(error_of(zip_bytes({entry}, {.entries = 2})),
            "claims a directory of 2 members in 47 bytes at 35, which does not fit the file; the file is truncated or "
            "damaged");
  EXPECT_EQ(error_of(zip_bytes({entry}, {.entries = 0})),
            "is damaged: its directory does not hold as many members as it claims");
  EXPECT_EQ(error_of(zip_bytes({entry}, {.zip64 = true, .entries = uint64_t{1} << 60})),
            "claims a directory of 1152921504606846976 members in 47 bytes at 35, which does not fit the file; the "
            "file is truncated or damaged");
  EXPECT_EQ(error_of("x" + zip_bytes({entry})),
            "claims a directory of 1 members in 47 bytes at 35, which does not fit the file; the file is truncated or "
            "damaged");
  auto damaged = zip_bytes({entry});
  damaged[damaged.find("PK\1\2")] = 'p';
  EXPECT_EQ(error_of(damaged), "has a damaged zip directory at byte 35");
  auto split = zip_bytes({entry});
  split[split.size() - 18] = 1;
  EXPECT_EQ(error_of(split), "is one part of a split zip archive");
}

TEST(ZipArchiveTest, RefusesZip64RecordsThatAreDamagedOrContradict) {
  const ZipEntry entry{.name = "a", .data = "data"};
  const auto whole = zip_bytes({entry}, {.zip64 = true});
  EXPECT_EQ(error_of(whole), "no error");
  auto damaged = whole;
  damaged[whole.find("PK\6\6") + 4] = 45;
  EXPECT_EQ(error_of(damaged), "has a damaged zip64 end record");
  auto outside = whole;
  outside.replace(whole.find("PK\6\7") + 8, 8, little_endian(UINT64_MAX - 3, 8));
  EXPECT_EQ(error_of(outside), "has a damaged zip64 end record");
  auto other = whole;
  other.replace(whole.find("PK\5\6") + 16, 4, little_endian(7, 4));
  EXPECT_EQ(error_of(other), "has two zip end records that contradict each other");
  auto missing = zip_bytes({{.name = "a", .data = "data", .bytes = 0xFFFFFFFF}});
  EXPECT_EQ(error_of(missing), "zip member 'a' has no zip64 sizes");
}

TEST(ZipArchiveTest, RefusesMembersOutsideOfTheFile) {
  EXPECT_EQ(error_of(zip_bytes({{.name = "a", .data = "data", .stored_bytes = 5, .bytes = 5}})),
            "zip member 'a' claims 5 bytes at 0, outside of the 35 bytes before the directory; the file is truncated "
            "or damaged");
  EXPECT_EQ(error_of(zip_bytes({{.name = "a", .data = "data", .header = 6}})),
            "zip member 'a' claims 4 bytes at 6, outside of the 35 bytes before the directory; the file is truncated "
            "or damaged");
  EXPECT_EQ(error_of(zip_bytes({{.name = "a", .data = "data", .zip64 = true, .header = UINT64_MAX - 20}})),
            "zip member 'a' claims 4 bytes at 18446744073709551595, outside of the 35 bytes before the directory; the "
            "file is truncated or damaged");
  EXPECT_EQ(error_of(zip_bytes(
                {{.name = "a", .data = "data", .zip64 = true, .stored_bytes = UINT64_MAX, .bytes = UINT64_MAX}})),
            "zip member 'a' claims 18446744073709551615 bytes at 0, outside of the 35 bytes before the directory; the "
            "file is truncated or damaged");
}

TEST(ZipArchiveTest, RefusesMembersThatOverlapOrShareAName) {
  const ZipEntry first{.name = "aa", .data = "data"};
  EXPECT_EQ(error_of(zip_bytes({first, {.name = "aa", .data = "more"}})), "has two zip members named 'aa'");
  EXPECT_EQ(error_of(zip_bytes({first, {.name = "aa", .data = "more", .header = 0}})),
            "zip members 'aa' and 'aa' overlap");
  // The second member lies in the data of the first.
  const auto inner = zip_bytes({{.name = "bb", .data = "inner"}});
  const auto outer = zip_bytes({{.name = "aa", .data = inner}, {.name = "bb", .data = "inner", .header = 32}});
  EXPECT_EQ(error_of(outer), "zip members 'aa' and 'bb' overlap");
}

TEST(ZipArchiveTest, RefusesWhatItCannotRead) {
  for (const uint16_t flags : {0x0001, 0x0040, 0x2000}) {
    EXPECT_EQ(error_of(zip_bytes({{.name = "a", .data = "data", .flags = flags}})), "zip member 'a' is encrypted");
  }
  EXPECT_EQ(error_of(zip_bytes({{.name = "a\n\xff", .data = "data", .method = 12}})),
            "zip member 'a\\x0a\\xff' has compression 12; only stored and deflated members are supported");
  EXPECT_EQ(error_of(zip_bytes({{.name = "a", .data = "data", .bytes = 5}})),
            "zip member 'a' is stored with two sizes, 4 and 5");
  EXPECT_EQ(error_of(zip_bytes({{.name = "a", .data = "data", .local_name = "b"}})),
            "zip member 'a' has another name in its own header; the file is damaged");
}

TEST(ZipArchiveTest, RefusesDeflatedMembersThatAreNotWhatTheyClaim) {
  const std::string text(1000, 'x');
  const auto message = [](const char* bytes) {
    return "zip member 'a' does not inflate to the " + std::string(bytes) +
           " bytes that were stored; the file is damaged";
  };
  EXPECT_EQ(error_of(zip_bytes({{.name = "a", .data = text, .deflate = true}})), "no error");
  EXPECT_EQ(error_of(zip_bytes({{.name = "a", .data = text, .deflate = true, .bytes = 999}})), message("999"));
  EXPECT_EQ(error_of(zip_bytes({{.name = "a", .data = text, .deflate = true, .bytes = 0}})), message("0"));
  EXPECT_EQ(error_of(zip_bytes({{.name = "a", .data = text, .deflate = true, .bytes = 1001}})), message("1001"));
  EXPECT_EQ(error_of(zip_bytes({{.name = "a", .data = text, .deflate = true, .crc32 = 1}})), message("1000"));
  EXPECT_EQ(error_of(zip_bytes({{.name = "a", .data = text, .method = 8}})), message("1000"));
  // The checksums of stored members are not looked at: PyTorch can leave them out.
  EXPECT_EQ(error_of(zip_bytes({{.name = "a", .data = text, .crc32 = 1}})), "no error");
}

TEST(ZipArchiveTest, RefusesZipBombs) {
  const std::string zeros(40 << 20, '\0');
  const ZipEntry bomb{.name = "a", .data = zeros, .deflate = true};
  EXPECT_EQ(error_of(zip_bytes({bomb})), "no error");
  auto second = bomb;
  second.name = "b";
  const auto bytes = zip_bytes({bomb, second});
  EXPECT_EQ(error_of(bytes), "would inflate to 83886080 bytes, more than the " +
                                 std::to_string(bytes.size() * 16 + (64 << 20)) + " that are accepted of a file of " +
                                 std::to_string(bytes.size()));
  EXPECT_EQ(error_of(zip_bytes({{.name = "a", .data = "x", .deflate = true, .zip64 = true, .bytes = UINT64_MAX},
                                {.name = "b", .data = "x", .deflate = true, .zip64 = true, .bytes = UINT64_MAX}})),
            "would inflate to 18446744073709551615 bytes, more than the 67112704 that are accepted of a file of 240");
}

}  // namespace
}  // namespace contrastive
