#include "contrastive/text/open_tokenizer.h"

#include <initializer_list>
#include <string_view>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "contrastive/core/error.h"
#include "contrastive/core/file.h"
#include "contrastive/text/clip_tokenizer.h"
#include "contrastive/text/sentencepiece_tokenizer.h"
#include "contrastive/text/wordpiece_tokenizer.h"

namespace contrastive::text {

namespace {

namespace fs = std::filesystem;

constexpr const char* kMergesFile = "clip/bpe_simple_vocab_16e6.txt.gz";

Cleaning parse_cleaning(const std::string& name, Cleaning own) {
  if (name.empty()) return own;
  if (name == "lower") return Cleaning::lower;
  if (name == "whitespace") return Cleaning::whitespace;
  if (name == "canonicalize") return Cleaning::canonicalize;
  throw ConfigError(fmt::format("[tokenizer] clean must be lower, whitespace or canonicalize, but is \"{}\"", name));
}

void check_vocab_size(const Tokenizer& tokenizer, const TokenizerSpec& spec) {
  if (tokenizer.vocab_size() > spec.vocab_size) {
    throw ConfigError(
        fmt::format("[tokenizer] vocab_size must be at least {}, the ids of {}, but is {}", tokenizer.vocab_size(),
                    spec.hf_tokenizer_name.empty() ? "CLIP's tokenizer" : spec.hf_tokenizer_name, spec.vocab_size));
  }
}

fs::path find_file(const TokenizerSpec& spec, std::initializer_list<const char*> names) {
  std::error_code error;
  if (!spec.file.empty()) return spec.file;
  for (const auto* name : names) {
    if (fs::exists(spec.folder / name, error)) return spec.folder / name;
  }
  throw ConfigError(fmt::format("[tokenizer {}] it needs a file that was not found in \"{}\": looked for {}",
                                spec.hf_tokenizer_name, spec.folder.string(), fmt::join(names, ", ")));
}

std::unique_ptr<Tokenizer> open_clip_tokenizer(const TokenizerSpec& spec) {
  ClipTokenizerOptions options;
  options.cleaning = parse_cleaning(spec.clean, Cleaning::lower);
  return std::make_unique<ClipTokenizer>(find_resource(kMergesFile), options);
}

std::unique_ptr<Tokenizer> open_wordpiece_tokenizer(const TokenizerSpec& spec, std::string_view name) {
  if (spec.policy == "lit") {
    auto lit = lit_wordpiece_options();
    lit.cleaning = parse_cleaning(spec.clean, lit.cleaning);
    return std::make_unique<WordPieceTokenizer>(find_file(spec, {"vocab.txt"}), lit);
  }
  WordPieceOptions options;
  options.cleaning = parse_cleaning(spec.clean, Cleaning::whitespace);
  options.lower_case = name.find("-cased") == name.npos;
  options.separator = spec.strip_sep_token ? Separator::blanked : Separator::added;
  return std::make_unique<WordPieceTokenizer>(find_file(spec, {"vocab.txt"}), options);
}

std::unique_ptr<Tokenizer> open_sentencepiece_tokenizer(const TokenizerSpec& spec, std::string_view name) {
  if (spec.policy == "lit") {
    auto lit = lit_sentencepiece_options();
    lit.cleaning = parse_cleaning(spec.clean, lit.cleaning);
    return std::make_unique<SentencePieceTokenizer>(find_file(spec, {"spiece.model", "tokenizer.model"}), lit);
  }
  const bool first_siglip = name.find("siglip") != name.npos && name.find("siglip2") == name.npos;
  SentencePieceOptions options;
  options.cleaning = parse_cleaning(spec.clean, Cleaning::whitespace);
  options.pad_id = first_siglip ? 1 : 0;  // the others' models have a piece for padding, the first
  options.vocab_size = spec.vocab_size;
  return std::make_unique<SentencePieceTokenizer>(find_file(spec, {"spiece.model", "tokenizer.model"}), options);
}

std::string in_lower_case(std::string text) {
  for (char& c : text) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  return text;
}

}  // namespace

std::unique_ptr<Tokenizer> open_tokenizer(const TokenizerSpec& spec) {
  if (spec.context_length < 2) {
    throw ConfigError(fmt::format("[tokenizer] context_length must be at least 2, but is {}", spec.context_length));
  }
  const auto name = in_lower_case(spec.hf_tokenizer_name);
  const bool is_bert = name.find("bert") != name.npos && name.find("roberta") == name.npos;
  if (spec.strip_sep_token && !is_bert) {
    throw ConfigError(
        fmt::format("[tokenizer] strip_sep_token is for BERT's tokenizers, but hf_tokenizer_name is \"{}\"",
                    spec.hf_tokenizer_name));
  }
  if (!spec.policy.empty() && spec.policy != "lit") {
    throw ConfigError(fmt::format("[tokenizer] policy must be lit or \"\", but is \"{}\"", spec.policy));
  }
  if (spec.policy == "lit" && name.empty()) {
    throw ConfigError("[tokenizer] policy lit is for BERT and SentencePiece; it needs an hf_tokenizer_name");
  }
  auto tokenizer = name.empty() ? open_clip_tokenizer(spec)
                   : is_bert    ? open_wordpiece_tokenizer(spec, name)
                                : open_sentencepiece_tokenizer(spec, name);
  check_vocab_size(*tokenizer, spec);
  return tokenizer;
}

}  // namespace contrastive::text
