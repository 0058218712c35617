#include "contrastive/text/sentencepiece_tokenizer.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>
#include <sentencepiece_processor.h>

#include "contrastive/core/error.h"

#include "text/input.h"
#include "text/sentencepiece_model.h"
#include "text/unicode.h"
#include "text/unigram.h"

namespace contrastive::text {

namespace {

constexpr int64_t kMaxModelBytes = 32 << 20;

std::string valid_utf8(std::string_view text) {
  return encode_utf8(decode_utf8(text));
}

}  // namespace

SentencePieceOptions siglip_tokenizer_options() {
  SentencePieceOptions options;
  options.cleaning = Cleaning::canonicalize;
  options.pad_id = 1;
  return options;
}

SentencePieceOptions siglip2_tokenizer_options() {
  auto options = siglip_tokenizer_options();
  options.pad_id = 0;
  return options;
}

SentencePieceOptions lit_sentencepiece_options() {
  return {};
}

struct SentencePieceTokenizer::Impl {
  Impl(const std::filesystem::path& model_file, const SentencePieceOptions& options_in)
      : name(model_file.string()), options(options_in) {
    auto model = check_sentencepiece_model(read_data_file(model_file, kMaxModelBytes), name);
    check(processor.LoadFromSerializedProto(model.serialized), "loading");
    if (model.is_unigram) unigram.emplace(std::move(model.unigram_pieces), processor.unk_id());
    find_bytes();
    set_vocab_size(model);
    start = options.add_bos ? required_id(processor.bos_id(), "start", "add_bos") : -1;
    end = options.add_eos ? required_id(processor.eos_id(), "end", "add_eos") : -1;
    padding = options.pad_id ? *options.pad_id : required_id(processor.eos_id(), "end", "padding with the end id");
    if (padding < 0 || padding >= vocab_size) {
      throw ConfigError(
          fmt::format("[SentencePiece model {}] pad_id must be in [0, {}), but is {}", name, vocab_size, padding));
    }
  }

  void set_vocab_size(const CheckedModel& model) {
    vocab_size = static_cast<int64_t>(model.num_pieces);
    if (options.vocab_size == 0) return;
    if (options.vocab_size < static_cast<int64_t>(model.num_ordinary)) {
      throw ConfigError(
          fmt::format("[SentencePiece model {}] vocab_size must be at least {}, the model's ordinary pieces, but is {}",
                      name, model.num_ordinary, options.vocab_size));
    }
    vocab_size = std::min(vocab_size, options.vocab_size);
  }

  int32_t required_id(int id, const char* mark, const char* wish) const {
    if (id >= 0 && id < vocab_size) return id;
    throw ConfigError(
        fmt::format("[SentencePiece model {}] {} needs the {} id, which the model lacks", name, wish, mark));
  }

  void append_ids(std::string_view text, std::vector<int32_t>& ids) const {
    const auto cleaned = valid_utf8(clean_text(text, options.cleaning));
    if (unigram) {
      std::vector<std::string> pieces;
      check(processor.Encode(cleaned, &pieces), "encoding");
      append_unigram_ids(joined(pieces), ids);
    } else {
      std::vector<int> found;
      check(processor.Encode(cleaned, &found), "encoding");
      for (const int id : found) append_id(id, ids);
    }
  }

  void check(const sentencepiece::util::Status& status, const char* operation) const {
    if (!status.ok())
      throw DataError(fmt::format("[SentencePiece model {}] {}: {}", name, operation, status.message()));
  }

  /// The normalized text that the library split into these pieces.
  std::string joined(const std::vector<std::string>& pieces) const {
    std::string text;
    for (const auto& piece : pieces) {
      const int32_t id = processor.PieceToId(piece);
      if (processor.IsByte(id)) {
        text += static_cast<char>(std::find(byte_ids.begin(), byte_ids.end(), id) - byte_ids.begin());
      } else {
        text += piece;
      }
    }
    return text;
  }

  /// An unknown part becomes its bytes if the model has them; otherwise adjacent unknown parts are one id.
  void append_unigram_ids(std::string_view normalized, std::vector<int32_t>& ids) const {
    bool after_unknown = false;
    for (const auto& [part, id] : unigram->split(normalized)) {
      const bool unknown = id == processor.unk_id();
      if (unknown && !byte_ids.empty()) {
        for (const char byte : part) append_id(byte_ids[static_cast<uint8_t>(byte)], ids);
      } else if (!unknown || !after_unknown) {
        append_id(id, ids);
      }
      after_unknown = unknown;
    }
  }

  void append_id(int32_t id, std::vector<int32_t>& ids) const {
    ids.push_back(id < vocab_size ? id : processor.unk_id());
  }

  /// The ids of the bytes 0..255 if the model falls back on them.
  void find_bytes() {
    for (int byte = 0; byte < 256; ++byte) {
      const int32_t id = processor.PieceToId(fmt::format("<0x{:02X}>", byte));
      if (!processor.IsByte(id)) return byte_ids.clear();
      byte_ids.push_back(id);
    }
  }

  std::string name;
  SentencePieceOptions options;
  sentencepiece::SentencePieceProcessor processor;
  std::optional<UnigramSplitter> unigram;
  std::vector<int32_t> byte_ids;
  int64_t vocab_size = 0;
  int32_t start = -1;
  int32_t end = -1;
  int32_t padding = 0;
};

SentencePieceTokenizer::SentencePieceTokenizer(const std::filesystem::path& model_file,
                                               const SentencePieceOptions& options)
    : impl_(std::make_unique<Impl>(model_file, options)) {}
SentencePieceTokenizer::~SentencePieceTokenizer() = default;
SentencePieceTokenizer::SentencePieceTokenizer(SentencePieceTokenizer&&) noexcept = default;
SentencePieceTokenizer& SentencePieceTokenizer::operator=(SentencePieceTokenizer&&) noexcept = default;

std::vector<int32_t> SentencePieceTokenizer::encode(std::string_view text) const {
  std::vector<int32_t> ids;
  impl_->append_ids(text, ids);
  return ids;
}

int64_t SentencePieceTokenizer::tokenize(std::string_view text, std::span<int32_t> row, bool truncate) const {
  const auto& options = impl_->options;
  const size_t marks = static_cast<size_t>(options.add_bos) + static_cast<size_t>(options.add_eos);
  if (row.size() < std::max(marks, size_t{1})) {
    throw ConfigError(fmt::format("[tokenize] context length must be at least {}, but is {}",
                                  std::max(marks, size_t{1}), row.size()));
  }
  std::vector<int32_t> ids;
  if (options.add_bos) ids.push_back(impl_->start);
  impl_->append_ids(text, ids);
  if (options.add_eos) ids.push_back(impl_->end);
  const size_t length = fill_row(ids, impl_->padding, text, truncate, row);
  if (ids.size() > length && options.add_eos && options.keep_eos_when_truncated) row[length - 1] = impl_->end;
  return static_cast<int64_t>(length);
}

std::string SentencePieceTokenizer::decode(std::span<const int32_t> ids) const {
  const auto outside = [&](int32_t id) { return id < 0 || id >= impl_->vocab_size; };
  if (const auto found = std::find_if(ids.begin(), ids.end(), outside); found != ids.end()) {
    throw DataError(fmt::format("[SentencePiece model {}] id must be in [0, {}), but is {}", impl_->name,
                                impl_->vocab_size, *found));
  }
  std::string text;
  impl_->check(impl_->processor.Decode(std::vector<int>(ids.begin(), ids.end()), &text), "decoding");
  return valid_utf8(text);
}

int64_t SentencePieceTokenizer::vocab_size() const {
  return impl_->vocab_size;
}

}  // namespace contrastive::text
