#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <sys/resource.h>

#include "contrastive/core/error.h"
#include "contrastive/core/file.h"
#include "contrastive/core/version.h"
#include "contrastive/data/normalize.h"
#include "contrastive/data/shard_list.h"
#include "contrastive/data/train_loader.h"
#include "contrastive/data/webdataset_source.h"
#include "contrastive/eval/model_folder.h"
#include "contrastive/loss/model_loss.h"
#include "contrastive/models/precision.h"
#include "contrastive/optim/adamw.h"
#include "contrastive/text/clip_tokenizer.h"
#include "contrastive/text/sentencepiece_tokenizer.h"
#include "contrastive/text/wordpiece_tokenizer.h"

#include "bench_loss.h"
#include "common/program.h"

namespace {

using namespace contrastive;
using Clock = std::chrono::steady_clock;
using nlohmann::ordered_json;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Seconds of each repetition, ascending.
std::vector<double> time_each(int64_t repetitions, const std::function<void()>& action) {
  std::vector<double> seconds;
  for (int64_t i = 0; i < repetitions; ++i) {
    const auto start = Clock::now();
    action();
    seconds.push_back(seconds_since(start));
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds;
}

void print(ordered_json result) {
  result["version"] = version_details();
  fmt::print("{}\n", result.dump());
}

std::shared_ptr<const text::ClipTokenizer> make_tokenizer() {
  return std::make_shared<text::ClipTokenizer>(find_resource("clip/bpe_simple_vocab_16e6.txt.gz"));
}

struct TrainArguments {
  std::string model = "ViT-B-32";
  std::string precision = "fp32";
  int64_t batch_size = 32;
  int64_t tokens = 22;
  int64_t steps = 5;
  int64_t threads = 0;
  std::string image_tower = "trained";
};

/// Rows of `length` ids with the two highest as start and end, as captions of that length give them. [B, length]
torch::Tensor random_tokens(int64_t rows, int64_t length, int64_t vocab_size) {
  auto tokens = at::randint(0, std::max<int64_t>(1, vocab_size - 2), {rows, length}, at::kLong);
  tokens.select(1, 0).fill_(vocab_size - 2);
  tokens.select(1, length - 1).fill_(vocab_size - 1);
  return tokens;
}

/// Largest resident memory of this process so far, in bytes.
int64_t peak_memory() {
  struct rusage usage {};
  getrusage(RUSAGE_SELF, &usage);
  return int64_t{usage.ru_maxrss} * 1024;
}

/// Times whole training steps on random pixels (or, cached, features) and tokens: normalise, forward, loss, backward,
/// optimiser. A locked image tower is locked with its projection, as open_clip's lock_image_tower does.
int bench_train(const TrainArguments& arguments) {
  if (arguments.threads > 0) at::set_num_threads(static_cast<int>(arguments.threads));
  const auto config = models::model_config_from_file(eval::find_model_config(arguments.model));
  if (arguments.tokens < 2 || arguments.tokens > config.text_cfg.context_length) {
    throw ConfigError(fmt::format("--tokens must be between 2 and {}", config.text_cfg.context_length));
  }
  const torch::Device device = at::hasCUDA() ? torch::kCUDA : torch::kCPU;
  const bool is_cached = arguments.image_tower == "cached";
  models::ClipModel model(config, torch::kCPU,
                          is_cached ? models::ImageTowerPart::projection : models::ImageTowerPart::whole);
  model->reset_parameters(at::make_generator<at::CPUGeneratorImpl>(uint64_t{0}));
  model->to(device);
  model->train();
  if (arguments.image_tower != "trained") model->visual->lock({.unlocked_groups = 0, .head = true});
  optim::AdamW optimizer(model->named_trainable(), {}, optim::open_clip_decays);
  const image::PreprocessSpec preprocess;
  const auto size = config.vision_cfg.image_size;
  const auto pixels = at::randint(0, 256, {is_cached ? 1 : arguments.batch_size, size, size, 3}, at::kByte);
  const auto features = at::randn({arguments.batch_size, config.vision_cfg.output_width()}).to(device);
  const auto tokens = random_tokens(arguments.batch_size, arguments.tokens, config.text_cfg.vocab_size).to(device);
  const auto step = [&] {
    const auto images = data::normalize_images(pixels, preprocess.mean, preprocess.std, device);
    models::ClipOutput output;
    {
      const models::AutocastGuard autocast(device.type(), arguments.precision == "amp_bf16");
      output = is_cached ? model->forward_features(features, tokens) : model->forward(images, tokens);
    }
    const auto result = loss::model_loss(output);
    result.loss.backward();
    optimizer.step(1e-5);
    optimizer.zero_grad();
    model->clamp_logit_scale();
    (void)result.loss.item<float>();  // a GPU's work ends here
  };
  step();  // the first step also takes the memory
  const auto seconds = time_each(arguments.steps, step);
  const double median = seconds[seconds.size() / 2];
  print({{"benchmark", "train"},
         {"model", arguments.model},
         {"precision", arguments.precision},
         {"batch", arguments.batch_size},
         {"tokens", arguments.tokens},
         {"image_tower", arguments.image_tower},
         {"steps", arguments.steps},
         {"device", device.str()},
         {"threads", at::get_num_threads()},
         {"samples_per_s", static_cast<double>(arguments.batch_size) / median},
         {"step_s_median", median},
         {"step_s_min", seconds.front()},
         {"peak_memory_mb", static_cast<double>(peak_memory()) / 1e6}});
  return tools::kDone;
}

struct LoaderArguments {
  std::string shards;
  int64_t image_size = 224;
  int64_t batch_size = 32;
  int64_t workers = 1;
  int64_t epochs = 3;
};

/// Times training batches from shards: read, decode, crop, resize, tokenise.
int bench_loader(const LoaderArguments& arguments) {
  const auto source = std::make_shared<data::WebdatasetSource>(
      data::ShardIndex::open(data::expand_shard_list(arguments.shards)), data::WebdatasetOptions{});
  data::TrainLoaderOptions options;
  options.batch_size = arguments.batch_size;
  options.image_size = arguments.image_size;
  options.workers = arguments.workers;
  data::TrainLoader loader(source, make_tokenizer(), options);
  const int64_t batches = source->size() / arguments.batch_size;
  if (batches == 0) throw ConfigError("--batch-size is larger than the data set");
  const auto seconds = time_each(arguments.epochs, [&] {
    for (int64_t i = 0; i < batches; ++i) loader.next();
  });
  const auto images = static_cast<double>(batches * arguments.batch_size);
  print({{"benchmark", "loader"},
         {"shards", arguments.shards},
         {"image_size", arguments.image_size},
         {"batch", arguments.batch_size},
         {"workers", arguments.workers},
         {"epochs", arguments.epochs},
         {"images_per_s", images / seconds[seconds.size() / 2]},
         {"images_per_s_max", images / seconds.front()}});
  return tools::kDone;
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
         {"captions_per_s", captions / seconds[seconds.size() / 2]},
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
  const auto before = peak_memory();
  const auto load_seconds = time_each(repetitions, [&] { eval::load_model(request); });
  const auto load_peak = peak_memory();
  const auto read_seconds = time_each(repetitions, [&] { read_whole_file(file); });
  const auto size = static_cast<double>(std::filesystem::file_size(file));
  print({{"benchmark", "load"},
         {"file", file},
         {"file_mb", size / 1e6},
         {"repetitions", repetitions},
         {"read_s_median", read_seconds[read_seconds.size() / 2]},
         {"load_s_median", load_seconds[load_seconds.size() / 2]},
         {"load_to_read", load_seconds[load_seconds.size() / 2] / read_seconds[read_seconds.size() / 2]},
         {"memory_mb_before", static_cast<double>(before) / 1e6},
         {"peak_memory_mb", static_cast<double>(load_peak) / 1e6},
         {"memory_to_file", static_cast<double>(load_peak - before) / size}});
  return tools::kDone;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Measures parts of the library; prints one JSON object a measurement.", "clip_bench");
  app.require_subcommand(1);

  TrainArguments train;
  auto* train_command = app.add_subcommand("train", "a training step on random data");
  train_command->add_option("--model", train.model, "a shipped model's name or JSON file")->capture_default_str();
  train_command->add_option("--precision", train.precision)
      ->check(CLI::IsMember({"fp32", "amp_bf16"}))
      ->capture_default_str();
  train_command->add_option("--batch-size", train.batch_size)->check(CLI::Range(2, 1 << 20))->capture_default_str();
  train_command->add_option("--tokens", train.tokens, "length of every caption, start and end included")
      ->capture_default_str();
  train_command->add_option("--steps", train.steps)->check(CLI::PositiveNumber)->capture_default_str();
  train_command->add_option("--threads", train.threads, "0: one per core")->capture_default_str();
  train_command
      ->add_option("--image-tower", train.image_tower,
                   "trained; locked: forward only; cached: its features are given, and it isn't in memory")
      ->check(CLI::IsMember({"trained", "locked", "cached"}))
      ->capture_default_str();

  LoaderArguments loader;
  auto* loader_command = app.add_subcommand("loader", "training batches from shards");
  loader_command->add_option("shards", loader.shards)->required();
  loader_command->add_option("--image-size", loader.image_size)->check(CLI::Range(1, 4096))->capture_default_str();
  loader_command->add_option("--batch-size", loader.batch_size)->check(CLI::PositiveNumber)->capture_default_str();
  loader_command->add_option("--workers", loader.workers)->check(CLI::PositiveNumber)->capture_default_str();
  loader_command->add_option("--epochs", loader.epochs)->check(CLI::PositiveNumber)->capture_default_str();

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
  tokenizer_command->add_option("--repetitions", repetitions)->check(CLI::PositiveNumber)->capture_default_str();

  std::string weights, weights_model;
  auto* load_command = app.add_subcommand("load", "a model's weights from a file");
  load_command->add_option("file", weights, "a weights file")->required();
  load_command->add_option("--model", weights_model,
                           "a shipped model's name or JSON file, for weights without a config");
  load_command->add_option("--repetitions", repetitions)->check(CLI::PositiveNumber)->capture_default_str();

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
  loss_command->add_option("--repetitions", loss.repetitions)->check(CLI::PositiveNumber)->capture_default_str();
  loss_command->add_option("--threads", loss.threads, "0: one per core")->capture_default_str();

  return contrastive::tools::run_program(app, argc, argv, [&] {
    if (loss_command->parsed()) {
      print(tools::bench_loss(loss));
      return tools::kDone;
    }
    if (load_command->parsed()) return bench_load(weights, weights_model, repetitions);
    if (train_command->parsed()) return bench_train(train);
    if (loader_command->parsed()) return bench_loader(loader);
    return bench_tokenizer(tokenizer, repetitions);
  });
}
