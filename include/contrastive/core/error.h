#pragma once

#include <stdexcept>
#include <string>

#include "contrastive/core/export.h"

namespace contrastive {

/// Base of every error this library throws on purpose. The message names what was being done, to which object,
/// what was expected and what was found.
class CONTRASTIVE_API Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A configuration file, an override or a combination of settings is wrong.
class CONTRASTIVE_API ConfigError : public Error {
 public:
  using Error::Error;
};

/// A shard, an image, a caption or another input file is missing, malformed or too large.
class CONTRASTIVE_API DataError : public Error {
 public:
  using Error::Error;
};

/// A checkpoint or a weights file can't be written, read or trusted, or does not fit the model.
class CONTRASTIVE_API CheckpointError : public Error {
 public:
  using Error::Error;
};

/// Ranks that train together can't meet, or one of them failed or doesn't answer.
class CONTRASTIVE_API DistributedError : public Error {
 public:
  using Error::Error;
};

/// Training itself failed: a loss or gradient that is not finite.
class CONTRASTIVE_API TrainingError : public Error {
 public:
  using Error::Error;
};

namespace detail {
[[noreturn]] CONTRASTIVE_API void fail_internal_assert(const char* condition, const char* file, int line);
}  // namespace detail

}  // namespace contrastive

/// For our own bugs only: never for what a user or a file can cause.
#define CONTRASTIVE_INTERNAL_ASSERT(condition) \
  ((condition) ? static_cast<void>(0) : ::contrastive::detail::fail_internal_assert(#condition, __FILE__, __LINE__))
