#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "text/unigram.h"

namespace contrastive::text {

/// A SentencePiece model that the library may be given.
struct CheckedModel {
  std::string serialized;  ///< without self tests and unknown parts
  size_t num_pieces = 0;   ///< ids are [0, num_pieces)
  bool is_unigram = true;
  std::vector<UnigramPiece> unigram_pieces;  ///< of a unigram model: those that a text can hold
  size_t num_ordinary = 0;  ///< from here on, all ids are extra ones: user-defined, control or unused pieces
};

/// Checks all that the sentencepiece library takes on trust: the message's structure, the pieces, and the character
/// map's search tree, whose links it follows without a look at their bounds.
/// `name` is the file, for messages. Throws: DataError.
CheckedModel check_sentencepiece_model(std::string_view bytes, const std::string& name);

}  // namespace contrastive::text
