#include "train/starting_model.h"

#include <string>
#include <utility>

#include <ATen/CPUGeneratorImpl.h>
#include <fmt/format.h>

#include "contrastive/core/error.h"
#include "contrastive/core/log.h"
#include "contrastive/core/random.h"
#include "contrastive/eval/checkpoint_source.h"
#include "contrastive/eval/tower_source.h"
#include "contrastive/train/image_tower.h"

namespace contrastive::train::detail {
namespace {

constexpr const char* kImagePrefix = "visual.";
constexpr const char* kTextPrefix = "text.";

/// What is drawn with numbers of its own, so that it is the same whatever else is drawn.
enum class Part : int64_t { image_tower, image_head, text_tower, text_head };

at::Generator generator_of(const RunOptions& options, Part part) {
  RandomStream random(static_cast<uint64_t>(options.seed), RandomPurpose::model, {-1, static_cast<int64_t>(part)});
  return at::make_generator<at::CPUGeneratorImpl>(random.next());
}

bool starts_from_towers(const RunOptions& options) {
  return !options.lock.empty() || !options.image.checkpoint.empty() || !options.text.checkpoint.empty();
}

/// Whether a tower comes from a checkpoint: the letter says so, or that there is one.
bool is_pretrained(const RunOptions& options, size_t letter, const TowerOptions& tower) {
  if (!options.lock.empty()) return options.lock[letter] != 'u';
  return !tower.checkpoint.empty() || !options.weights.empty();
}

/// The text tower's tensors of text.checkpoint, or of `weights`.
std::vector<LazyTensor> find_text_tower(const RunOptions& options, const models::ModelConfig& config) {
  if (!options.text.checkpoint.empty()) return eval::open_text_tower(options.text.checkpoint, config.text_cfg).tensors;
  auto source = eval::open_checkpoint({.path = options.weights, .config = config});
  std::vector<LazyTensor> tensors;
  for (auto& tensor : source.tensors) {
    if (tensor.name.starts_with(kImagePrefix) || tensor.name.starts_with("logit_")) continue;
    if (tensor.name.starts_with(kTextPrefix)) tensor.name = tensor.name.substr(std::string(kTextPrefix).size());
    tensors.push_back(std::move(tensor));
  }
  return tensors;
}

/// Takes the temperature of `weights` if they are all that the run starts from.
void start_scale(const RunOptions& options, const models::ModelConfig& config, models::ClipModel& model, bool reads) {
  model->reset_scale();
  const bool is_whole = !options.weights.empty() && options.image.checkpoint.empty() &&
                        options.text.checkpoint.empty() && options.lock.find('u') == std::string::npos;
  if (!is_whole || !reads) return;
  const at::NoGradGuard no_grad;
  for (const auto& tensor : eval::open_checkpoint({.path = options.weights, .config = config}).tensors) {
    if (tensor.name == "logit_scale") model->logit_scale.copy_(tensor.load().reshape({}));
    if (tensor.name == "logit_bias") model->logit_bias.copy_(tensor.load().reshape({}));
  }
}

/// In fp32, as a model in memory has them.
LazyTensor widened(LazyTensor tensor) {
  if (!at::isFloatingType(tensor.dtype) || tensor.dtype == at::kFloat) return tensor;
  tensor.dtype = at::kFloat;
  tensor.load = [load = std::move(tensor.load)] { return load().to(at::kFloat); };
  return tensor;
}

/// A head that didn't come from the checkpoint.
void draw_head(models::TowerImpl& tower, const TowerOptions& options, const char* key, at::Generator generator) {
  if (!tower.has_head()) return;
  if (options.lock_head) {
    throw ConfigError(fmt::format(
        "{}.lock_head: the projection isn't in the checkpoint (or has another shape there), so it would be locked at "
        "random values; without lock_head it is trained",
        key));
  }
  log(LogLevel::info, fmt::format("{} tower: its projection isn't in the checkpoint and starts at random", key));
  tower.reset_head(generator);
}

template <typename Load>
void with_place(const char* key, const std::string& location, const Load& load) {
  try {
    load();
  } catch (const CheckpointError& error) {
    throw CheckpointError(fmt::format("[{} {}] {}", key, location, error.what()));
  }
}

void start_image_tower(const RunOptions& options, StartingModel& start, bool reads) {
  auto& tower = *start.model->visual;
  if (!is_pretrained(options, 0, options.image)) {
    auto generator = generator_of(options, Part::image_tower);
    return tower.reset_parameters(generator);
  }
  if (!reads) return;
  const auto& location = options.image.checkpoint.empty() ? options.weights : options.image.checkpoint;
  auto source = find_image_tower(options);
  log(LogLevel::info, fmt::format("image tower: {} from {}", source.format, location));
  bool has_loaded_head = false;
  with_place("image.checkpoint", location, [&] {
    if (options.image.cache.empty()) {
      has_loaded_head = tower.load_state(source.tensors);
      return;
    }
    std::erase_if(source.tensors, [](const auto& tensor) { return !models::is_projection(tensor.name); });
    has_loaded_head = tower.load_state(source.tensors);
  });
  if (!has_loaded_head) draw_head(tower, options.image, "image", generator_of(options, Part::image_head));
}

void start_text_tower(const RunOptions& options, const models::ModelConfig& config, models::TextTowerImpl& tower,
                      bool reads) {
  if (!is_pretrained(options, 1, options.text)) {
    auto generator = generator_of(options, Part::text_tower);
    return tower.reset_parameters(generator);
  }
  if (!reads) return;
  const auto& location = options.text.checkpoint.empty() ? options.weights : options.text.checkpoint;
  log(LogLevel::info, fmt::format("text tower: from {}", location));
  bool has_loaded_head = false;
  with_place("text.checkpoint", location,
             [&] { has_loaded_head = tower.load_state(find_text_tower(options, config)); });
  if (!has_loaded_head) draw_head(tower, options.text, "text", generator_of(options, Part::text_head));
}

/// The image tower's tensors that a run from cached embeddings doesn't hold.
std::vector<LazyTensor> absent_tensors(const RunOptions& options) {
  std::vector<LazyTensor> absent;
  for (auto& tensor : find_image_tower(options).tensors) {
    if (models::is_projection(tensor.name)) continue;
    tensor.name = kImagePrefix + tensor.name;
    absent.push_back(widened(std::move(tensor)));
  }
  return absent;
}

}  // namespace

StartingModel make_starting_model(const RunOptions& options, const models::ModelConfig& config, bool reads,
                                  bool is_resumed) {
  const bool is_cached = !options.image.cache.empty();
  StartingModel start;
  start.model = models::ClipModel(config, torch::kCPU,
                                  is_cached ? models::ImageTowerPart::projection : models::ImageTowerPart::whole);
  if (is_cached && reads) start.absent = absent_tensors(options);
  if (is_resumed) return start;
  if (!starts_from_towers(options)) {
    start.model->reset_parameters(at::make_generator<at::CPUGeneratorImpl>(static_cast<uint64_t>(options.seed)));
    if (reads && !options.weights.empty()) {
      start.model->load_state(eval::open_checkpoint({.path = options.weights, .config = config}).tensors);
    }
    return start;
  }
  start_image_tower(options, start, reads);
  start_text_tower(options, config, *start.model->text, reads);
  start_scale(options, config, start.model, reads);
  return start;
}

}  // namespace contrastive::train::detail
