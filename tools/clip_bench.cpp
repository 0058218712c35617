#include <algorithm>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "contrastive/core/error.h"
#include "contrastive/core/file.h"
#include "contrastive/core/version.h"
#include "contrastive/eval/model_folder.h"
#include "contrastive/text/clip_tokenizer.h"
#include "contrastive/text/sentencepiece_tokenizer.h"
#include "contrastive/text/wordpiece_tokenizer.h"

#include "bench_adapt.h"
#include "bench_loader.h"
#include "bench_logistic.h"
#include "bench_loss.h"
#include "bench_measure.h"
#include "bench_memory.h"
#include "bench_train.h"
#include "common/program.h"
#include "common/validators.h"

namespace {

using namespace contrastive;
using nlohmann::ordered_json;
using tools::Clock, tools::median, tools::seconds_since, tools::time_each;

void print(ordered_json result) {
  result["version"] = version_details();
  fmt::print("{}\n", result.dump());
}

struct TokenizerArguments {
  std::string file;
  std::string kind = "clip";
  std::string vocabulary;
  int64_t context_length = 77;
  int64_t threads = 1;
};

std::unique_ptr<text::Tokenizer> open_tokenizer(const TokenizerArguments& arguments) {
  if (arguments.kind != "clip" && arguments.vocabulary.empty()) {
    throw ConfigError(fmt::format("--kind {} needs --vocabulary FILE", arguments.kind));
  }
  if (arguments.kind == "sentencepiece") {
    return std::make_unique<text::SentencePieceTokenizer>(arguments.vocabulary, text::siglip_tokenizer_options());
  }
  if (arguments.kind == "wordpiece") return std::make_unique<text::WordPieceTokenizer>(arguments.vocabulary);
  return std::make_unique<text::ClipTokenizer>(find_resource("clip/bpe_simple_vocab_16e6.txt.gz"));
}

/// Times the lines of a file, each time with a fresh tokenizer, whose word cache is empty; making it is not counted.
int bench_tokenizer(const TokenizerArguments& arguments, int64_t repetitions) {
  std::ifstream stream(arguments.file);
  if (!stream) throw DataError(fmt::format("[{}] can't be opened", arguments.file));
  std::vector<std::string> lines;
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  if (lines.empty()) throw DataError(fmt::format("[{}] has no lines", arguments.file));
  std::vector<int32_t> rows(lines.size() * static_cast<size_t>(arguments.context_length));
  std::vector<double> seconds;
  for (int64_t i = 0; i < repetitions; ++i) {
    const auto tokenizer = open_tokenizer(arguments);
    const auto start = Clock::now();
    text::tokenize_all(*tokenizer, lines, arguments.context_length, rows, static_cast<int>(arguments.threads));
    seconds.push_back(seconds_since(start));
  }
  std::sort(seconds.begin(), seconds.end());
  const auto captions = static_cast<double>(lines.size());
  print({{"benchmark", "tokenizer"},
         {"kind", arguments.kind},
         {"threads", arguments.threads},
         {"captions", lines.size()},
         {"repetitions", repetitions},
         {"captions_per_s", captions / median(seconds)},
         {"captions_per_s_max", captions / seconds.front()}});
  return tools::kDone;
}

/// Reads a file into memory of its size, as a loader that copies nothing else would.
void read_whole_file(const std::string& file) {
  const auto size = std::filesystem::file_size(file);
  const std::unique_ptr<char[]> memory(new char[size]);
  std::ifstream stream(file, std::ios::binary);
  stream.rdbuf()->pubsetbuf(nullptr, 0);
  if (!stream.read(memory.get(), static_cast<std::streamsize>(size))) {
    throw CheckpointError(fmt::format("[{}] can't be read", file));
  }
}

/// Times opening a checkpoint and loading its weights into a model, beside reading the file.
int bench_load(const std::string& file, const std::string& model, int64_t repetitions) {
  eval::CheckpointRequest request;
  request.path = file;
  request.model = model;
  const auto before = tools::peak_memory();
  const auto load_seconds = time_each(repetitions, [&] { eval::load_model(request); });
  const auto load_peak = tools::peak_memory();
  const auto read_seconds = time_each(repetitions, [&] { read_whole_file(file); });
  const auto size = static_cast<double>(std::filesystem::file_size(file));
  print({{"benchmark", "load"},
         {"file", file},
         {"file_mb", size / 1e6},
         {"repetitions", repetitions},
         {"read_s_median", median(read_seconds)},
         {"load_s_median", median(load_seconds)},
         {"load_to_read", median(load_seconds) / median(read_seconds)},
         {"memory_mb_before", before / 1e6},
         {"peak_memory_mb", load_peak / 1e6},
         {"memory_to_file", (load_peak - before) / size}});
  return tools::kDone;
}

}  // namespace

int main(int argc, char** argv) {
  contrastive::tools::keep_freed_memory();
  CLI::App app("Measures parts of the library; prints one JSON object a measurement.", "clip_bench");
  app.require_subcommand(1);

  tools::TrainArguments train;
  auto* train_command = app.add_subcommand("train", "a training step, on random data or on shards");
  train_command->add_option("--model", train.model, "a shipped model's name or JSON file")->capture_default_str();
  train_command->add_option("--precision", train.precision)
      ->check(CLI::IsMember({"fp32", "amp_bf16"}))
      ->capture_default_str();
  train_command->add_option("--batch-size", train.batch_size)->check(CLI::Range(2, 1 << 20))->capture_default_str();
  auto* tokens_option =
      train_command->add_option("--tokens", train.tokens, "length of every caption, start and end included")
          ->capture_default_str();
  train_command->add_option("--steps", train.steps)->check(tools::positive())->capture_default_str();
  train_command->add_option("--threads", train.threads, "0: one per core")->capture_default_str();
  train_command
      ->add_option("--image-tower", train.image_tower,
                   "trained; locked: forward only; cached: its features are given, and it isn't in memory")
      ->check(CLI::IsMember({"trained", "locked", "cached"}))
      ->capture_default_str();

  train_command->add_option("--data", train.data, "batches from these shards: the wait for them is in the step")
      ->excludes(tokens_option);
  train_command->add_option("--workers", train.workers, "decoding threads, with --data")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  train_command->add_option("--prefetch", train.prefetch, "batches made ahead, with --data")
      ->check(tools::non_negative())
      ->capture_default_str();
  train_command->add_flag("--profile", train.is_profiled, "break the steps down by part; a table on stderr");

  tools::LoaderArguments loader;
  auto* loader_command = app.add_subcommand("loader", "training batches from shards");
  loader_command->add_option("shards", loader.shards)->required();
  loader_command->add_option("--image-size", loader.image_size)->check(CLI::Range(1, 4096))->capture_default_str();
  loader_command->add_option("--batch-size", loader.batch_size)->check(tools::positive())->capture_default_str();
  loader_command->add_option("--workers", loader.workers, "decoding threads; several numbers (1,2): a run for each")
      ->delimiter(',')
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  auto* epochs_option =
      loader_command->add_option("--epochs", loader.epochs)->check(tools::positive())->capture_default_str();
  loader_command->add_option("--samples", loader.samples, "whole epochs until there are at least this many")
      ->check(tools::positive())
      ->excludes(epochs_option);

  TokenizerArguments tokenizer;
  int64_t repetitions = 3;
  auto* tokenizer_command = app.add_subcommand("tokenizer", "captions, one a line of a file");
  tokenizer_command->add_option("file", tokenizer.file)->required();
  tokenizer_command->add_option("--kind", tokenizer.kind)
      ->check(CLI::IsMember({"clip", "sentencepiece", "wordpiece"}))
      ->capture_default_str();
  tokenizer_command->add_option("--vocabulary", tokenizer.vocabulary, "spiece.model or vocab.txt");
  tokenizer_command->add_option("--context-length", tokenizer.context_length)
      ->check(CLI::Range(4, 1 << 16))
      ->capture_default_str();
  tokenizer_command->add_option("--threads", tokenizer.threads)->check(CLI::Range(1, 1024))->capture_default_str();
  tokenizer_command->add_option("--repetitions", repetitions)->check(tools::positive())->capture_default_str();

  std::string weights, weights_model;
  auto* load_command = app.add_subcommand("load", "a model's weights from a file");
  load_command->add_option("file", weights, "a weights file")->required();
  load_command->add_option("--model", weights_model,
                           "a shipped model's name or JSON file, for weights without a config");
  load_command->add_option("--repetitions", repetitions)->check(tools::positive())->capture_default_str();

  tools::AdaptArguments adapt;
  auto* adapt_command = app.add_subcommand("adapt", "adapters on made-up features: fit and logits, search, retrieval");
  adapt_command->add_option("--part", adapt.part)
      ->check(CLI::IsMember({"score", "grid", "naive", "retrieval"}))
      ->capture_default_str();
  adapt_command->add_option("--adapter", adapt.adapter)->capture_default_str();
  adapt_command->add_option("--images", adapt.images)->check(tools::positive())->capture_default_str();
  adapt_command->add_option("--classes", adapt.classes, "or, of retrieval, prompts")
      ->check(tools::positive())
      ->capture_default_str();
  adapt_command->add_option("--rows", adapt.rows, "of the support set or, of retrieval, the index")
      ->check(tools::positive())
      ->capture_default_str();
  adapt_command->add_option("--dim", adapt.dim)->check(tools::positive())->capture_default_str();
  adapt_command->add_option("--threads", adapt.threads, "0: one per core")->capture_default_str();

  tools::LogisticArguments logistic;
  auto* logistic_command = app.add_subcommand("logistic", "a logistic regression on features of a file");
  logistic_command
      ->add_option("features", logistic.features,
                   "safetensors file with train_features, train_labels, test_features and test_labels")
      ->required();
  logistic_command->add_option("--c", logistic.c, "inverse strength of the penalty")
      ->check(tools::positive())
      ->capture_default_str();
  logistic_command->add_option("--tolerance", logistic.tolerance, "of the gradient")->capture_default_str();
  logistic_command->add_option("--objective-tolerance", logistic.objective_tolerance)->capture_default_str();
  logistic_command->add_flag("--sweep", logistic.sweep, "the whole linear probe, with its search for C");
  logistic_command->add_flag("--fp64", logistic.fp64, "compute in double");
  logistic_command->add_option("--repetitions", logistic.repetitions)->check(tools::positive())->capture_default_str();
  logistic_command->add_option("--threads", logistic.threads, "0: one per core")->capture_default_str();

  tools::LossArguments loss;
  auto* loss_command = app.add_subcommand("loss", "a loss of random features, forward and backward");
  loss_command->add_option("--kind", loss.kind)
      ->check(CLI::IsMember({"contrastive", "sigmoid"}))
      ->capture_default_str();
  loss_command->add_option("--rows", loss.rows)->check(CLI::Range(1, 1 << 20))->capture_default_str();
  loss_command->add_option("--dim", loss.dim)->check(CLI::Range(1, 1 << 16))->capture_default_str();
  loss_command->add_option("--scale", loss.scale, "of the logits")->capture_default_str();
  loss_command->add_option("--precision", loss.precision)
      ->check(CLI::IsMember({"fp32", "bf16", "fp64"}))
      ->capture_default_str();
  loss_command->add_option("--repetitions", loss.repetitions)->check(tools::positive())->capture_default_str();
  loss_command->add_option("--threads", loss.threads, "0: one per core")->capture_default_str();

  return contrastive::tools::run_program(app, argc, argv, [&] {
    if (adapt_command->parsed()) {
      print(tools::bench_adapt(adapt));
      return tools::kDone;
    }
    if (logistic_command->parsed()) {
      print(tools::bench_logistic(logistic));
      return tools::kDone;
    }
    if (loss_command->parsed()) {
      print(tools::bench_loss(loss));
      return tools::kDone;
    }
    if (load_command->parsed()) return bench_load(weights, weights_model, repetitions);
    if (train_command->parsed()) {
      print(tools::bench_train(train));
      return tools::kDone;
    }
    if (loader_command->parsed()) {
      for (auto& result : tools::bench_loader(loader)) print(std::move(result));
      return tools::kDone;
    }
    return bench_tokenizer(tokenizer, repetitions);
  });
}
