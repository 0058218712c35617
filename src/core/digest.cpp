#include "contrastive/core/digest.h"

#include <array>
#include <fstream>
#include <vector>

#include <fmt/format.h>

#include "contrastive/core/error.h"

#include "core/sha256_stream.h"

namespace contrastive {
namespace detail {

Sha256Stream::Sha256Stream() : context_(EVP_MD_CTX_new(), &EVP_MD_CTX_free) {
  CONTRASTIVE_INTERNAL_ASSERT(EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr) == 1);
}

void Sha256Stream::update(std::string_view bytes) {
  EVP_DigestUpdate(context_.get(), bytes.data(), bytes.size());
}

std::string Sha256Stream::hex() {
  std::array<uint8_t, EVP_MAX_MD_SIZE> digest;
  unsigned size = 0;
  EVP_DigestFinal_ex(context_.get(), digest.data(), &size);
  std::string text;
  for (unsigned i = 0; i < size; ++i) text += fmt::format("{:02x}", digest[i]);
  return text;
}

}  // namespace detail

std::string sha256_hex(std::span<const uint8_t> bytes) {
  detail::Sha256Stream hash;
  hash.update({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  return hash.hex();
}

std::string sha256_hex_of_file(const std::filesystem::path& file) {
  std::ifstream stream(file, std::ios::binary);
  if (!stream) throw Error(fmt::format("[{}] can't be opened for reading", file.string()));
  detail::Sha256Stream hash;
  std::vector<char> buffer(1 << 20);
  while (stream.read(buffer.data(), static_cast<std::streamsize>(buffer.size())) || stream.gcount() > 0) {
    hash.update({buffer.data(), static_cast<size_t>(stream.gcount())});
  }
  if (stream.bad()) throw Error(fmt::format("[{}] reading failed", file.string()));
  return hash.hex();
}

}  // namespace contrastive
