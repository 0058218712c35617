#include "contrastive/text/tokenizer.h"

#include <algorithm>
#include <exception>
#include <thread>

#include <fmt/format.h>

#include "contrastive/core/error.h"

namespace contrastive::text {

namespace {

void check_sizes(size_t texts, int64_t context_length, size_t ids, int threads) {
  if (context_length < 1) {
    throw ConfigError(fmt::format("[tokenize_all] context length must be at least 1, but is {}", context_length));
  }
  if (threads < 1) throw ConfigError(fmt::format("[tokenize_all] threads must be at least 1, but is {}", threads));
  const auto length = static_cast<size_t>(context_length);
  if (ids % length != 0 || ids / length != texts) {
    throw ConfigError(fmt::format("[tokenize_all] rows of {} texts must have {} ids each, but there are {} ids", texts,
                                  context_length, ids));
  }
}

}  // namespace

Tokenizer::~Tokenizer() = default;

void tokenize_all(const Tokenizer& tokenizer, std::span<const std::string> texts, int64_t context_length,
                  std::span<int32_t> rows, int threads) {
  check_sizes(texts.size(), context_length, rows.size(), threads);
  const auto length = static_cast<size_t>(context_length);
  const size_t workers = std::clamp(texts.size(), size_t{1}, static_cast<size_t>(threads));
  std::vector<std::exception_ptr> errors(workers);
  const auto work = [&](size_t worker) noexcept {
    try {
      const size_t end = texts.size() * (worker + 1) / workers;
      for (size_t i = texts.size() * worker / workers; i < end; ++i) {
        tokenizer.tokenize(texts[i], rows.subspan(i * length, length));
      }
    } catch (...) {
      errors[worker] = std::current_exception();
    }
  };
  {
    std::vector<std::jthread> others;
    for (size_t worker = 1; worker < workers; ++worker) others.emplace_back(work, worker);
    work(0);
  }
  // Workers take texts in order, each up to its first failure: the first error is that of the first bad text.
  for (const auto& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

}  // namespace contrastive::text
