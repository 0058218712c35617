#pragma once

#include <memory>
#include <string>
#include <string_view>

#include <openssl/evp.h>

namespace contrastive::detail {

/// SHA-256 over pieces.
class Sha256Stream {
 public:
  Sha256Stream();
  void update(std::string_view bytes);
  std::string hex();

 private:
  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context_;
};

}  // namespace contrastive::detail
