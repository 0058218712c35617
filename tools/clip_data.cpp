#include <filesystem>
#include <string>

#include <fmt/format.h>

#include "contrastive/core/error.h"
#include "contrastive/data/shard_index.h"
#include "contrastive/data/shard_list.h"
#include "contrastive/data/shard_writer.h"
#include "contrastive/data/synthetic.h"
#include "contrastive/data/validate.h"

#include "common/program.h"
#include "common/validators.h"

namespace {

using namespace contrastive;

struct SynthArguments {
  std::string folder;
  data::SyntheticOptions options;
  int64_t test_samples = 2'000;
  int64_t samples_per_shard = 1'000;
};

int synth(const SynthArguments& arguments) {
  const std::filesystem::path folder = arguments.folder;
  data::ShardWriterOptions writer;
  writer.threads = 0;
  data::write_shards(data::SyntheticSource(arguments.options), folder / "train", arguments.samples_per_shard, writer);
  auto test = arguments.options;
  test.samples = arguments.test_samples;
  data::write_classification_folder(data::synthetic_classification(test), folder, "test", arguments.samples_per_shard,
                                    writer);
  const auto last_shard = (arguments.options.samples - 1) / arguments.samples_per_shard;
  fmt::print("{} training samples: {}/train/{{00000..{:05}}}.tar\n", arguments.options.samples, folder.string(),
             last_shard);
  fmt::print("{} test samples of held-out combinations: {}\n", arguments.test_samples, folder.string());
  return tools::kDone;
}

int index(const std::string& shards) {
  const auto index = data::ShardIndex::open(data::expand_shard_list(shards));
  fmt::print("{} samples in {} shards; {} shards indexed now, {} were indexed before\n", index.size(),
             index.num_shards(), index.num_built(), index.num_shards() - index.num_built());
  return tools::kDone;
}

int validate(const std::string& shards, const data::ValidationOptions& options) {
  const auto report = data::validate_shards(data::expand_shard_list(shards), options);
  for (const auto& problem : report.problems) {
    fmt::print("[{}]{}{}: {}: {}\n", problem.shard.string(), problem.key.empty() ? "" : " sample ", problem.key,
               data::to_string(problem.kind), problem.reason);
  }
  fmt::print("{} samples, {} images and {} captions good; captions have {:.1f} bytes on average, {} at most\n",
             report.samples, report.images_ok, report.captions_ok, report.caption_bytes_mean, report.caption_bytes_max);
  for (const auto& [kind, count] : report.counts) fmt::print("{}: {}\n", data::to_string(kind), count);
  if (report.problems.empty()) return tools::kDone;
  throw DataError(fmt::format("{} problems found", report.problems.size()));
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Makes, indexes and checks webdataset shards.", "clip_data");
  app.require_subcommand(1);

  SynthArguments synth_arguments;
  auto* synth_command = app.add_subcommand("synth", "write the procedural data set as shards, with its zero-shot test");
  synth_command->add_option("folder", synth_arguments.folder, "where to write; made if missing")->required();
  synth_command->add_option("--samples", synth_arguments.options.samples)
      ->check(tools::positive())
      ->capture_default_str();
  synth_command->add_option("--test-samples", synth_arguments.test_samples)
      ->check(tools::positive())
      ->capture_default_str();
  synth_command->add_option("--samples-per-shard", synth_arguments.samples_per_shard)
      ->check(tools::positive())
      ->capture_default_str();
  synth_command->add_option("--image-size", synth_arguments.options.image_size, "pixels, both sides")
      ->capture_default_str();
  synth_command->add_option("--seed", synth_arguments.options.seed)->capture_default_str();

  std::string shards;
  auto* index_command = app.add_subcommand("index", "index shards ahead of training");
  index_command->add_option("shards", shards, "e.g. 'train/{00000..00049}.tar::more/{0..3}.tar'")->required();

  data::ValidationOptions validation;
  auto* validate_command = app.add_subcommand("validate", "read and decode every sample, and name each bad one");
  validate_command->add_option("shards", shards, "as for index")->required();
  validate_command->add_option("--image-keys", validation.members.image_keys)->capture_default_str();
  validate_command->add_option("--caption-key", validation.members.caption_key, "an extension, or json:FIELD")
      ->capture_default_str();
  validate_command->add_flag("--need-label,!--no-label", validation.members.need_label,
                             "check the .cls member as well");
  validate_command->add_flag("!--no-caption", validation.members.need_caption, "captions are not needed");

  return contrastive::tools::run_program(app, argc, argv, [&] {
    if (synth_command->parsed()) return synth(synth_arguments);
    if (index_command->parsed()) return index(shards);
    return validate(shards, validation);
  });
}
