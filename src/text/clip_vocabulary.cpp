#include "contrastive/text/clip_vocabulary.h"

#include <string>
#include <string_view>
#include <vector>

#include <fmt/format.h>

#include "contrastive/core/error.h"
#include "contrastive/core/file.h"

#include "text/byte_pairs.h"

namespace contrastive::text {

namespace {

constexpr std::string_view kStart = "<|startoftext|>";
constexpr std::string_view kEnd = "<|endoftext|>";

/// All symbols as the merges file spells them, in the order of their ids.
std::vector<std::string> spelled_vocabulary(const std::vector<std::string>& merges) {
  auto symbols = byte_spellings();
  const size_t num_bytes = symbols.size();
  for (size_t i = 0; i < num_bytes; ++i) symbols.push_back(symbols[i] + "</w>");
  for (auto merge : merges) {
    std::erase(merge, ' ');
    symbols.push_back(std::move(merge));
  }
  symbols.emplace_back(kStart);
  symbols.emplace_back(kEnd);
  return symbols;
}

/// The symbols hold no control characters, so two characters remain that JSON escapes.
std::string json_string(std::string_view text) {
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') quoted += '\\';
    quoted += c;
  }
  return quoted + '"';
}

std::string vocab_json(const std::vector<std::string>& symbols) {
  std::string json = "{";
  for (size_t id = 0; id < symbols.size(); ++id) {
    json += fmt::format("{}{}: {}", id == 0 ? "" : ", ", json_string(symbols[id]), id);
  }
  return json + "}\n";
}

std::string merges_txt(const std::vector<std::string>& merges) {
  std::string text = "#version: 0.2\n";
  for (const auto& merge : merges) text += merge + '\n';
  return text;
}

std::string special_tokens_json() {
  return fmt::format(
      "{{\n  \"bos_token\": \"{0}\",\n  \"eos_token\": \"{1}\",\n  \"pad_token\": \"{1}\",\n  \"unk_token\": "
      "\"{1}\"\n}}\n",
      kStart, kEnd);
}

std::string tokenizer_config_json() {
  return fmt::format(
      "{{\n  \"tokenizer_class\": \"CLIPTokenizer\",\n  \"do_lower_case\": true,\n  \"errors\": \"replace\",\n"
      "  \"add_prefix_space\": false,\n  \"model_max_length\": 77,\n  \"bos_token\": \"{0}\",\n"
      "  \"eos_token\": \"{1}\",\n  \"pad_token\": \"{1}\",\n  \"unk_token\": \"{1}\"\n}}\n",
      kStart, kEnd);
}

}  // namespace

void write_clip_vocabulary(const std::filesystem::path& folder, const std::filesystem::path& merges_file) {
  const auto merges = read_merge_lines(merges_file);
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) throw Error(fmt::format("[{}] making the folder failed: {}", folder.string(), error.message()));
  write_file_atomically(folder / "vocab.json", vocab_json(spelled_vocabulary(merges)));
  write_file_atomically(folder / "merges.txt", merges_txt(merges));
  write_file_atomically(folder / "special_tokens_map.json", special_tokens_json());
  write_file_atomically(folder / "tokenizer_config.json", tokenizer_config_json());
}

}  // namespace contrastive::text
