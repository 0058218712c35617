#include "contrastive/data/tar.h"

#include <csignal>
#include <cstdio>
#include <sstream>
#include <tuple>

#include <gtest/gtest.h>
#include <sys/resource.h>

#include "contrastive/core/error.h"

#include "tests/support/paths.h"
#include "tests/unit/data/shard_test_support.h"

namespace contrastive::data {
namespace {

namespace fs = std::filesystem;
using test::expect_mentions;
using test::message_of;

using Listing = std::vector<std::tuple<int64_t, int64_t, std::string>>;

Listing list(const fs::path& archive) {
  Listing members;
  TarReader reader(archive);
  for (TarMember member; reader.next(member);) members.emplace_back(member.offset, member.size, member.name);
  return members;
}

Listing expected_listing(const fs::path& file) {
  Listing members;
  std::istringstream lines(test::read_file(file));
  for (std::string line; std::getline(lines, line);) {
    const auto first = line.find('\t');
    const auto second = line.find('\t', first + 1);
    members.emplace_back(std::stoll(line.substr(0, first)), std::stoll(line.substr(first + 1, second - first - 1)),
                         line.substr(second + 1));
  }
  return members;
}

/// Makes the stored checksum of the header at `offset` right again, after POSIX: the sum of all bytes with the
/// checksum's own eight read as spaces.
void fix_checksum(std::string& archive, size_t offset) {
  archive.replace(offset + 148, 8, "        ");
  unsigned sum = 0;
  for (size_t i = 0; i < 512; ++i) sum += static_cast<unsigned char>(archive[offset + i]);
  char text[8];
  std::snprintf(text, sizeof text, "%06o", sum);
  archive.replace(offset + 148, 7, std::string(text, 7));
}

class TarTest : public ::testing::Test {
 protected:
  fs::path path(const std::string& name = "a.tar") const { return folder_.path() / name; }

  /// "0.jpg" (600 bytes) and "0.txt" (5 bytes): headers at 0 and 1536, end blocks at 2560, 3584 bytes in all.
  std::string two_members() const {
    test::write_tar(path(), {{"0.jpg", std::string(600, 'x')}, {"0.txt", "a cat"}});
    return test::read_file(path());
  }

  std::string error_for(const std::string& archive) const {
    test::write_file(path(), archive);
    return message_of<DataError>([&] { list(path()); });
  }

  test::TemporaryDirectory folder_;
};

TEST_F(TarTest, ReadsWhatGnuTarAndPythonWrite) {
  int count = 0;
  for (const auto& entry : fs::directory_iterator(test::own_fixtures_dir() / "tar")) {
    if (entry.path().extension() != ".tar") continue;
    auto expected = entry.path();
    expected.replace_extension(".members.tsv");
    EXPECT_EQ(list(entry.path()), expected_listing(expected)) << entry.path();
    ++count;
  }
  EXPECT_EQ(count, 8);
}

TEST_F(TarTest, ReadsBackWhatItWrites) {
  const std::string prefix(150, 'p');
  const test::Members members = {{"0.txt", ""},
                                 {"dir/0.jpg", std::string(512, 'a')},
                                 {std::string(100, 'n'), std::string(513, 'b')},
                                 {prefix + "/" + std::string(100, 'n'), "prefix"},
                                 {std::string(101, 'l'), "no slash to split at"},
                                 {std::string(300, 'd') + "/" + std::string(300, 'n'), "very long"},
                                 {"\xc3\xa9.txt", std::string(3 << 20, 'c')}};
  test::write_tar(path(), members);
  EXPECT_EQ(test::read_tar(path()), members);
}

TEST_F(TarTest, WritesArchivesThatGnuTarUnpacks) {
  const std::string long_name = std::string(120, 'd') + "/" + std::string(120, 'n');
  const std::string longer_name = std::string(990, 'x');
  test::write_tar(path(), {{"0.txt", "a cat"}, {long_name, "one"}, {longer_name, "two"}});
  const auto command = "tar --numeric-owner -f '" + path().string() + "' ";
  EXPECT_EQ(test::output_of(command + "-t"), "0.txt\n" + long_name + "\n" + longer_name + "\n");
  EXPECT_EQ(test::output_of(command + "-xO"), "a catonetwo");
  expect_mentions(test::output_of("TZ=UTC " + command + "-tv 0.txt"),
                  "-rw-r--r-- 0/0               5 1970-01-01 00:00 0.txt");
}

TEST_F(TarTest, WritesTheSameBytesForTheSameMembers) {
  const auto first = two_members();
  EXPECT_EQ(two_members(), first);
  EXPECT_EQ(first.size(), 3584U);
}

TEST_F(TarTest, LeavesNothingBehindWithoutClose) {
  test::write_file(path(), "was there");
  {
    TarWriter writer(path());
    writer.add("0.txt", std::string(4 << 20, 'x'));
  }
  EXPECT_EQ(test::read_file(path()), "was there");
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_.path()), fs::directory_iterator()), 1);
}

TEST_F(TarTest, NamesTheFileAndTheReasonWhenTheDiskIsFull) {
  // A limit on file sizes fails a write in the same place as a full disk does.
  rlimit before{};
  ::getrlimit(RLIMIT_FSIZE, &before);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit small{1 << 20, before.rlim_max};
  ::setrlimit(RLIMIT_FSIZE, &small);
  const auto message = message_of<Error>([&] {
    TarWriter writer(path());
    writer.add("0.txt", std::string(4 << 20, 'x'));
    writer.close();
  });
  ::setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  expect_mentions(message, "a.tar] writing the file failed: File too large");
  EXPECT_TRUE(fs::is_empty(folder_.path()));
}

TEST_F(TarTest, RefusesNamesThatCannotBeFiles) {
  TarWriter writer(path());
  const std::vector<std::string> names = {"", "folder/", std::string("a\0b", 3)};
  for (const auto& name : names) {
    expect_mentions(message_of<DataError>([&] { writer.add(name, ""); }), "can't be the name of a tar member: \"");
  }
  writer.close();
  expect_mentions(message_of<Error>([&] { writer.close(); }), "close() was called twice");
  expect_mentions(message_of<Error>([&] { writer.add("a.txt", ""); }), "add() was called after close()");
}

TEST_F(TarTest, FindsATruncationAtEveryBlockExceptBetweenMembersAndEndBlocks) {
  for (size_t length = two_members().size(); length-- > 0;) {
    if (length % 512 > 1 && length % 512 < 511) continue;  // a place inside a block is like another
    fs::resize_file(path(), length);
    if (length == 1536 || length == 2560 || length == 3072) {
      EXPECT_EQ(list(path()).size(), length == 1536 ? 1U : 2U);
    } else {
      expect_mentions(message_of<DataError>([&] { list(path()); }), "a.tar] damaged tar archive at offset ");
    }
  }
}

TEST_F(TarTest, NamesOffsetAndMemberOfATruncation) {
  const auto whole = two_members();
  expect_mentions(error_for(whole.substr(0, 0)), "damaged tar archive at offset 0: the file is empty");
  expect_mentions(error_for(whole.substr(0, 1024)),
                  "at offset 0: truncated: \"0.jpg\" has 600 bytes from offset 512, but the file ends at 1024");
  expect_mentions(error_for(whole.substr(0, 1600)),
                  "at offset 1536: truncated: a header needs 512 bytes, but only 64 are left");
}

TEST_F(TarTest, KnowsWhetherTheEndBlocksWereThere) {
  const auto whole = two_members();
  const auto has_end_blocks = [&](size_t length) {
    test::write_file(path(), whole.substr(0, length));
    TarReader reader(path());
    for (TarMember member; reader.next(member);) {
    }
    return reader.has_end_blocks();
  };
  EXPECT_TRUE(has_end_blocks(3584));
  EXPECT_FALSE(has_end_blocks(3072));
  EXPECT_FALSE(has_end_blocks(2560));
}

TEST_F(TarTest, IgnoresWhatFollowsTheEndBlocks) {
  test::write_file(path(), two_members() + "anything");
  EXPECT_EQ(list(path()).size(), 2U);
}

TEST_F(TarTest, FindsASingleZeroBlockInTheMiddle) {
  const auto whole = two_members();
  const auto message = error_for(whole.substr(0, 1536) + std::string(512, '\0') + whole.substr(1536));
  expect_mentions(message, "at offset 1536: a single zero block is followed by data");
}

TEST_F(TarTest, FindsEveryChangedByteOfAHeader) {
  const auto whole = two_members();
  for (size_t at = 1536; at < 2048; ++at) {
    if (at == 1536 + 155) continue;  // pads the checksum itself
    auto damaged = whole;
    damaged[at] = static_cast<char>(damaged[at] ^ 1);
    expect_mentions(error_for(damaged), "damaged tar archive at offset 1536: ");
  }
  auto damaged = whole;
  damaged[1536] = '1';
  expect_mentions(error_for(damaged), "at offset 1536: the header's checksum is ");
}

TEST_F(TarTest, BoundsSizesByTheFileBeforeItBelievesThem) {
  const auto with_size = [&](const std::string& field) {
    auto archive = two_members();
    archive.replace(1536 + 124, 12, field);
    fix_checksum(archive, 1536);
    return error_for(archive);
  };
  using namespace std::string_literals;
  expect_mentions(with_size("77777777777\0"s),
                  "\"0.txt\" has 8589934591 bytes from offset 2048, but the file ends at 3584");
  expect_mentions(with_size("777777777777"s), "\"0.txt\" has 68719476735 bytes");
  expect_mentions(with_size("\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff"s), "\"0.txt\" has 9223372036854775807 bytes");
  expect_mentions(with_size("\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff"s), "the size field is negative or above 2^63");
  expect_mentions(with_size("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"s),
                  "the size field is negative or above");
  expect_mentions(with_size("00000000x05\0"s), "its size field is not an octal number");
  expect_mentions(with_size("-0000000005\0"s), "its size field is not an octal number");
}

TEST_F(TarTest, UnderstandsBase256Sizes) {
  auto archive = two_members();
  archive.replace(1536 + 124, 12, std::string("\x80\0\0\0\0\0\0\0\0\0\0\x05", 12));
  fix_checksum(archive, 1536);
  test::write_file(path(), archive);
  EXPECT_EQ(std::get<1>(list(path()).back()), 5);
}

TEST_F(TarTest, RefusesMalformedAndMisplacedExtendedHeaders) {
  test::write_tar(path(), {{std::string(101, 'n'), "x"}});
  const auto whole = test::read_file(path());  // PAX header, its record "111 path=nnn...\n", the member
  const auto with_record = [&](const std::string& record) {
    auto archive = whole;
    archive.replace(512, record.size(), record);
    return error_for(archive);
  };
  expect_mentions(with_record("999 path="), "at offset 0: the PAX header has a malformed record");
  expect_mentions(with_record("x"), "the PAX header has a malformed record");
  expect_mentions(with_record("1 "), "the PAX header has a malformed record");
  expect_mentions(with_record("18446744073709551615 "), "the PAX header has a malformed record");
  expect_mentions(with_record("111 path_"), "the PAX header has a malformed record");
  expect_mentions(with_record("111 size="), "is not a size");
  expect_mentions(with_record("111 GNU.sparse.major=1"), "is a sparse file, which is not supported");
  expect_mentions(error_for(whole.substr(0, 1024)), "the file ends where a member's own header should follow");
  expect_mentions(error_for(whole.substr(0, 1024) + std::string(1024, '\0')),
                  "a zero block stands where a member's own header should follow");
}

TEST_F(TarTest, SaysThatAShardIsCompressed) {
  expect_mentions(error_for("\x1f\x8b" + std::string(1022, 'x')), "a.tar] is compressed with gzip");
  expect_mentions(error_for("\x28\xb5\x2f\xfd" + std::string(1020, 'x')), "a.tar] is compressed with zstd");
}

TEST_F(TarTest, ReportsFilesThatAreNoArchives) {
  expect_mentions(error_for(std::string(2048, 'x')), "not a tar header: its checksum field is not an octal number");
  expect_mentions(message_of<DataError>([&] { TarReader(path("none.tar")); }),
                  "none.tar] the file can't be opened: No such file or directory");
  expect_mentions(message_of<DataError>([&] { TarReader reader(folder_.path()); }), "is not a regular file");
}

}  // namespace
}  // namespace contrastive::data
