#pragma once

#include <optional>
#include <string>

namespace contrastive::data::detail {

/// Why a sample is no use.
struct Fault {
  std::string reason;   ///< the class of the error
  std::string message;  ///< the error
};

/// An error that a source threw; its class is told by what the message speaks of.
Fault reading_fault(std::string message);

/// An error of decoding the image.
Fault decoding_fault(std::string message);

/// What is wrong with a caption that a source handed out.
std::optional<Fault> caption_fault(const std::string& caption);

}  // namespace contrastive::data::detail
