#pragma once

#include <string>

#include "contrastive/core/error.h"

namespace contrastive::test {

/// The message of the error that an action throws; "no error" if it throws none. Errors of other kinds pass through.
template <typename Expected = Error, typename Action>
std::string message_of(const Action& action) {
  try {
    action();
  } catch (const Expected& error) {
    return error.what();
  }
  return "no error";
}

}  // namespace contrastive::test
