#include "contrastive/core/digest.h"

#include <fstream>
#include <string>

#include <gtest/gtest.h>

#include "contrastive/core/error.h"

#include "tests/support/paths.h"

namespace contrastive {
namespace {

std::string hex_of(const std::string& text) {
  return sha256_hex({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
}

// The messages and digests of NIST's examples for FIPS 180-4.
constexpr const char* kTwoBlocks = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
constexpr const char* kMillionDigest = "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0";

TEST(DigestTest, EqualsTheExamplesOfTheStandard) {
  EXPECT_EQ(hex_of(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(hex_of("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(hex_of(kTwoBlocks), "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(hex_of(std::string(1'000'000, 'a')), kMillionDigest);
}

TEST(DigestTest, OfAFileEqualsThatOfItsBytesAcrossReadBuffers) {
  const test::TemporaryDirectory folder;
  const auto file = folder.path() / "million";
  std::ofstream(file, std::ios::binary) << std::string(1'000'000, 'a');
  EXPECT_EQ(sha256_hex_of_file(file), kMillionDigest);

  // Larger than one buffer of 1 MiB, with bytes on both sides of its end; the digest is that of coreutils' sha256sum.
  std::ofstream(file, std::ios::binary) << std::string((1 << 20) + 1, 'b');
  EXPECT_EQ(sha256_hex_of_file(file), "d454619f929d302c8422a887943eb42fff8d7392a4848fdddd90b1f83b0c84eb");
  std::ofstream(file, std::ios::binary) << "";
  EXPECT_EQ(sha256_hex_of_file(file), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
}

TEST(DigestTest, NamesTheFileThatCannotBeRead) {
  const test::TemporaryDirectory folder;
  const auto missing = folder.path() / "missing";
  const auto message_of = [](const std::filesystem::path& file) -> std::string {
    try {
      sha256_hex_of_file(file);
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  };
  EXPECT_EQ(message_of(missing), "[" + missing.string() + "] can't be opened for reading");
  EXPECT_EQ(message_of(folder.path()), "[" + folder.path().string() + "] reading failed");
}

}  // namespace
}  // namespace contrastive
