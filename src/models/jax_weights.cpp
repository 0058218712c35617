#include <algorithm>
#include <memory>
#include <mutex>
#include <optional>
#include <string_view>
#include <utility>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "models/timm_names.h"
#include "models/tower_readers.h"

/// Flax's layouts: kernels of dense layers are [in, out], of convolutions [height, width, in, out]; attention keeps its
/// heads apart ([in, heads, width] and [heads, width, out]).
namespace contrastive::models::detail {
namespace {

using Tensors = std::vector<LazyTensor>;
using Shape = std::vector<int64_t>;

constexpr double kBitWeightNormEps = 1e-10;
constexpr int64_t kBitImageSize = 224;

LazyTensor dense_kernel(TensorSet& set, const std::string& source, const std::string& target, int64_t out, int64_t in) {
  return renamed(permuted(set.take(source, {in, out}), {1, 0}), target);
}

/// A dense layer: source/kernel and source/bias.
void append_dense(TensorSet& set, const std::string& source, const std::string& target, int64_t out, int64_t in,
                  Tensors& result) {
  result.push_back(dense_kernel(set, source + "/kernel", target + ".weight", out, in));
  result.push_back(renamed(set.take(source + "/bias", {out}), target + ".bias"));
}

void append_norm(TensorSet& set, const std::string& source, const std::string& target, int64_t width, Tensors& result) {
  result.push_back(renamed(set.take(source + "/scale", {width}), target + ".weight"));
  result.push_back(renamed(set.take(source + "/bias", {width}), target + ".bias"));
}

/// A convolution over patches with bias.
void append_patch_embedding(TensorSet& set, const std::string& source, const std::string& target,
                            const VisionConfig& config, Tensors& result) {
  const auto patch = config.patch_size;
  auto kernel = permuted(set.take(source + "/kernel", {patch, patch, 3, config.width}), {3, 2, 0, 1});
  result.push_back(renamed(std::move(kernel), target + ".weight"));
  result.push_back(renamed(set.take(source + "/bias", {config.width}), target + ".bias"));
}

struct EncoderSizes {
  int64_t width, heads, mlp_width, layers;
};

/// Names within a block of a tower.
struct BlockNames {
  std::string norm1, packed, out, norm2, fc1, fc2;
};

const BlockNames kTimmNames{"norm1", "attn.qkv.", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"};
const BlockNames kClipNames{"ln_1", "attn.in_proj_", "attn.out_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"};

/// Rows of a projection into heads: kernel [in, heads, width] to [heads * width, in].
LazyTensor head_rows(TensorSet& set, const std::string& source, const EncoderSizes& sizes) {
  const auto kernel = set.take(source + "/kernel", {sizes.width, sizes.heads, sizes.width / sizes.heads});
  return permuted(reshaped(kernel, {sizes.width, sizes.width}), {1, 0});
}

LazyTensor head_bias(TensorSet& set, const std::string& source, const EncoderSizes& sizes) {
  return reshaped(set.take(source + "/bias", {sizes.heads, sizes.width / sizes.heads}), {sizes.width});
}

/// Several projections into heads below each other. `target`: what comes before "weight" and "bias".
void append_packed(TensorSet& set, const std::string& attention, const std::vector<std::string>& parts,
                   const std::string& target, const EncoderSizes& sizes, Tensors& result) {
  Tensors weights, biases;
  for (const auto& part : parts) {
    weights.push_back(head_rows(set, attention + "/" + part, sizes));
    biases.push_back(head_bias(set, attention + "/" + part, sizes));
  }
  result.push_back(concatenated(target + "weight", weights));
  result.push_back(concatenated(target + "bias", biases));
}

/// The projection out of the heads: kernel [heads, width, out] to [out, heads * width].
void append_attention_out(TensorSet& set, const std::string& attention, const std::string& target,
                          const EncoderSizes& sizes, Tensors& result) {
  const auto source = attention + "/out";
  const auto kernel = set.take(source + "/kernel", {sizes.heads, sizes.width / sizes.heads, sizes.width});
  auto weight = permuted(reshaped(kernel, {sizes.width, sizes.width}), {1, 0});
  result.push_back(renamed(std::move(weight), target + ".weight"));
  result.push_back(renamed(set.take(source + "/bias", {sizes.width}), target + ".bias"));
}

// Before Linen, Flax counted the children of a module together, since then those of each class by themselves.
const std::vector<std::string> kSecondNorms = {"LayerNorm_1", "LayerNorm_2"};
const std::vector<std::string> kAttentions = {"MultiHeadDotProductAttention_0", "MultiHeadDotProductAttention_1"};
const std::vector<std::string> kMlps = {"MlpBlock_0", "MlpBlock_3"};

void append_block(TensorSet& set, const std::string& source, const std::string& target, const BlockNames& names,
                  const EncoderSizes& sizes, Tensors& result) {
  const auto attention = set.first_of(source, kAttentions), mlp = set.first_of(source, kMlps);
  append_norm(set, source + "LayerNorm_0", target + names.norm1, sizes.width, result);
  append_packed(set, attention, {"query", "key", "value"}, target + names.packed, sizes, result);
  append_attention_out(set, attention, target + names.out, sizes, result);
  append_norm(set, set.first_of(source, kSecondNorms), target + names.norm2, sizes.width, result);
  append_dense(set, mlp + "/Dense_0", target + names.fc1, sizes.mlp_width, sizes.width, result);
  append_dense(set, mlp + "/Dense_1", target + names.fc2, sizes.width, sizes.mlp_width, result);
}

/// The head that pools by attention; the names within are timm's.
void append_map_head(TensorSet& set, const std::string& source, const std::string& target, const EncoderSizes& sizes,
                     Tensors& result) {
  const auto attention = source + "MultiHeadDotProductAttention_0", mlp = source + "MlpBlock_0";
  result.push_back(renamed(set.take(source + "probe", {1, 1, sizes.width}), target + "latent"));
  append_packed(set, attention, {"query"}, target + "q.", sizes, result);
  append_packed(set, attention, {"key", "value"}, target + "kv.", sizes, result);
  append_attention_out(set, attention, target + "proj", sizes, result);
  append_norm(set, source + "LayerNorm_0", target + "norm", sizes.width, result);
  append_dense(set, mlp + "/Dense_0", target + "mlp.fc1", sizes.mlp_width, sizes.width, result);
  append_dense(set, mlp + "/Dense_1", target + "mlp.fc2", sizes.width, sizes.mlp_width, result);
}

/// A tensor that is loaded once for all its rows, and forgotten when each of them was asked for.
class StackedRows {
 public:
  explicit StackedRows(const LazyTensor& stack) : load_(stack.load), rows_(stack.shape[0]) {}

  torch::Tensor row(int64_t index) {
    const std::lock_guard lock(mutex_);
    if (!stack_.defined()) stack_ = load_();
    const auto result = stack_[index].clone();
    if (++num_asked_ % rows_ == 0) stack_.reset();
    return result;
  }

 private:
  std::function<torch::Tensor()> load_;
  int64_t rows_;
  std::mutex mutex_;
  torch::Tensor stack_;
  int64_t num_asked_ = 0;
};

/// Blocks that were run in a loop ("scan") are stacked in one: encoderblock/NAME to encoderblock_0/NAME, ...
Tensors unstacked(Tensors tensors) {
  constexpr std::string_view kStack = "encoderblock/";
  constexpr int64_t kMaxLayers = 1000;
  constexpr size_t kMaxTensors = 100'000;  // a file of many small stacks must not take memory for far more names
  Tensors result;
  for (auto& tensor : tensors) {
    const auto place = tensor.name.find(kStack);
    const bool is_stack = place != std::string::npos && !tensor.shape.empty();
    if (!is_stack || tensor.shape[0] < 1 || tensor.shape[0] > kMaxLayers || result.size() > kMaxTensors) {
      result.push_back(std::move(tensor));
      continue;
    }
    const auto rows = std::make_shared<StackedRows>(tensor);
    for (int64_t i = 0; i < tensor.shape[0]; ++i) {
      auto name = tensor.name;
      name.replace(place, kStack.size(), fmt::format("encoderblock_{}/", i));
      result.push_back({std::move(name), tensor.dtype, Shape(tensor.shape.begin() + 1, tensor.shape.end()),
                        [rows, i] { return rows->row(i); }});
    }
  }
  return result;
}

EncoderSizes infer_encoder(const TensorSet& set, const std::string& encoder, int64_t width) {
  EncoderSizes sizes{.width = width, .heads = 1, .mlp_width = 1, .layers = set.count(encoder + "encoderblock_", "/")};
  if (sizes.layers == 0) set.fail(fmt::format("has no blocks {}encoderblock_0/...", encoder));
  const auto block = encoder + "encoderblock_0/";
  sizes.heads = set.size(set.first_of(block, kAttentions) + "/query/kernel", 1, 3);
  sizes.mlp_width = set.size(set.first_of(block, kMlps) + "/Dense_0/kernel", 1, 2);
  if (width % sizes.heads != 0) set.fail(fmt::format("its width {} can't be shared by {} heads", width, sizes.heads));
  return sizes;
}

/// The projection that a head is, if there is one and it is wanted; else it is left out. Returns: its width, or 0.
int64_t append_head(TensorSet& set, bool keep, int64_t width, const std::string& target, Tensors& result) {
  if (!keep || !set.has("head/kernel")) {
    set.drop("head/");
    return 0;
  }
  const auto out = set.size("head/kernel", 1, 2);
  result.push_back(dense_kernel(set, "head/kernel", target + ".weight", out, width));
  if (set.has("head/bias")) result.push_back(renamed(set.take("head/bias", {out}), target + ".bias"));
  return out;
}

/// Sets the config's projection and the width of what the tower gives.
void finish_image(TensorSet& set, const ImageTowerOptions& options, ImageTowerWeights& tower) {
  auto& config = tower.config;
  config.proj_bias = options.keep_head && set.has("head/bias");
  const auto out = append_head(set, options.keep_head, config.output_width(), "head.proj", tower.tensors);
  config.proj_type = out > 0 ? "linear" : "none";
  tower.embed_dim = out > 0 ? out : config.output_width();
  set.finish();
}

/// Where the position table may stand. The first two have been part of the encoder.
std::string position_name(const TensorSet& set) {
  for (const auto* name : {"Transformer/posembed_input/pos_embedding", "Transformer/pos_embedding"}) {
    if (set.has(name)) return name;
  }
  return "pos_embedding";
}

/// Entries [begin, end) of a table [1, rows, D].
LazyTensor entries(const LazyTensor& table, int64_t begin, int64_t end) {
  return {table.name, table.dtype, {1, end - begin, table.shape[2]}, [load = table.load, begin, end] {
            return load().slice(1, begin, end);
          }};
}

/// [1, rows, D] to [1, 1 + rows, D], the first row zero.
LazyTensor with_zero_row(const LazyTensor& table) {
  return {table.name, table.dtype, {1, table.shape[1] + 1, table.shape[2]}, [load = table.load] {
            return at::constant_pad_nd(load(), {0, 0, 1, 0});
          }};
}

/// The class token, if there is one, and the position table.
void append_positions(TensorSet& set, VisionConfig& config, Tensors& result) {
  const auto name = position_name(set);
  const auto rows = set.size(name, 1, 3);
  const auto patches = config.class_token && square_side(rows) == 0 ? rows - 1 : rows;
  const auto grid = square_side(patches);
  if (grid == 0) set.fail(fmt::format("its position table {} has {} rows, which are not a square grid", name, rows));
  config.image_size = grid * config.patch_size;
  auto table = set.take(name, {1, rows, config.width});
  if (config.class_token) {
    auto token = set.take("cls", {1, 1, config.width});
    // big_vision adds the token's entry when it reads the file: in half precision the sum is rounded then.
    const bool is_rounded =
        c10::elementSize(token.dtype) < sizeof(float) && c10::elementSize(table.dtype) < sizeof(float);
    if (rows != patches && is_rounded) {
      token = added(std::move(token), entries(table, 0, 1));
      table = entries(table, 1, rows);
    }
    if (table.shape[1] == patches) table = with_zero_row(table);
    result.push_back(renamed(std::move(token), "trunk.cls_token"));
  }
  result.push_back(renamed(std::move(table), "trunk.pos_embed"));
}

/// The place of the attention pool; early files have it at the root.
std::string map_head_place(const TensorSet& set) {
  return set.has("probe") ? "" : "MAPHead_0/";
}

VisionConfig infer_vit(const TensorSet& set, const EncoderSizes& sizes) {
  VisionConfig config;
  config.layers = {sizes.layers};
  config.width = sizes.width;
  config.head_width = sizes.width / sizes.heads;
  config.mlp_ratio = mlp_ratio_of(sizes.width, sizes.mlp_width);
  config.patch_size = set.size("embedding/kernel", 0, 4);
  const bool has_map = set.has(map_head_place(set) + "probe");
  config.class_token = !has_map && set.has("cls");
  config.pool_type = has_map ? "map" : config.class_token ? "tok" : "avg";
  config.pre_logits = set.has_prefix("pre_logits/");
  config.gelu_tanh = true;
  config.norm_eps = kVitNormEps;
  return config;
}

/// The name of a Mixer's layers since they were rewritten, for one of before.
std::string new_mixer_name(const std::string& name) {
  static const NameParts kParts = {{"Mixer/encoderblock_", "MixerBlock_"},
                                   {"Mixer/encoder_norm", "pre_head_layer_norm"},
                                   {"_mixing_phase_0/kernel1", "_mixing/Dense_0/kernel"},
                                   {"_mixing_phase_0/kernel2", "_mixing/Dense_1/kernel"},
                                   {"_mixing_phase_0/bias1", "_mixing/Dense_0/bias"},
                                   {"_mixing_phase_0/bias2", "_mixing/Dense_1/bias"}};
  return name.starts_with("embedding/") ? "stem/" + name.substr(std::string("embedding/").size())
                                        : replace_parts(name, kParts);
}

/// Without leading dimensions of size 1, down to `num_dims`.
LazyTensor squeezed(LazyTensor tensor, size_t num_dims) {
  auto shape = tensor.shape;
  while (shape.size() > num_dims && shape.front() == 1) shape.erase(shape.begin());
  return shape == tensor.shape ? tensor : reshaped(std::move(tensor), shape);
}

Tensors with_new_mixer_names(Tensors tensors) {
  for (auto& tensor : tensors) {
    if (tensor.name.find("_mixing_phase_0/") != std::string::npos) {
      tensor = squeezed(std::move(tensor), tensor.name.find("/kernel") != std::string::npos ? 2 : 1);
    }
    tensor.name = new_mixer_name(tensor.name);
  }
  return tensors;
}

void append_mixer_mlp(TensorSet& set, const std::string& source, const std::string& target, int64_t width,
                      int64_t hidden, Tensors& result) {
  append_dense(set, source + "/Dense_0", target + ".fc1", hidden, width, result);
  append_dense(set, source + "/Dense_1", target + ".fc2", width, hidden, result);
}

/// The numbers that some writers gave to the convolutions, and the singleton dimensions that some group norms have.
Tensors with_plain_bit_names(Tensors tensors) {
  constexpr std::string_view kNumbered = "standardized_conv2d_";
  for (auto& tensor : tensors) {
    auto& name = tensor.name;
    const auto place = name.find(kNumbered);
    const auto begin = place + kNumbered.size();
    const auto end = place == std::string::npos ? place : name.find_first_not_of("0123456789", begin);
    if (end != std::string::npos && end > begin && name[end] == '/') name.erase(begin - 1, end - begin + 1);
    if (tensor.name.find("group_norm/") != std::string::npos) tensor = squeezed(std::move(tensor), 1);
  }
  return tensors;
}

/// What stands behind a prefix, a number and a dot in a name of our own.
struct IndexedName {
  int64_t index;
  std::string rest;
};

std::optional<IndexedName> indexed(const std::string& name, std::string_view prefix) {
  if (!name.starts_with(prefix)) return std::nullopt;
  const auto dot = name.find('.', prefix.size());
  return IndexedName{std::stoll(name.substr(prefix.size(), dot - prefix.size())), name.substr(dot + 1)};
}

/// The name in Google's files of what timm calls trunk.NAME.
std::string bit_source(const std::string& name) {
  static const NameParts kParts = {{"trunk.stem.conv.weight", "root_block/standardized_conv2d/kernel"},
                                   {"trunk.norm.", "group_norm."},
                                   {"downsample.conv.weight", "a/proj/standardized_conv2d/kernel"},
                                   {"conv1.weight", "a/standardized_conv2d/kernel"},
                                   {"conv2.weight", "b/standardized_conv2d/kernel"},
                                   {"conv3.weight", "c/standardized_conv2d/kernel"},
                                   {"norm1.", "a/group_norm."},
                                   {"norm2.", "b/group_norm."},
                                   {"norm3.", "c/group_norm."},
                                   {"group_norm.weight", "group_norm/gamma"},
                                   {"group_norm.bias", "group_norm/beta"}};
  const auto stage = indexed(name, "trunk.stages.");
  const auto block = stage ? indexed(stage->rest, "blocks.") : std::nullopt;
  if (!block) return "resnet/" + replace_parts(name, kParts);
  return fmt::format("resnet/block{}/unit{:02}/{}", stage->index + 1, block->index + 1,
                     replace_parts(block->rest, kParts));
}

VisionConfig infer_bit(const TensorSet& set, const ImageTowerOptions& options) {
  VisionConfig config;
  config.width = set.size("resnet/root_block/standardized_conv2d/kernel", 3, 4);
  config.layers.clear();
  for (int stage = 1; set.has_prefix(fmt::format("resnet/block{}/", stage)); ++stage) {
    int64_t units = 0;
    while (set.has_prefix(fmt::format("resnet/block{}/unit{:02}/", stage, units + 1))) ++units;
    config.layers.push_back(units);
  }
  if (config.layers.empty() || config.layers.size() > kMaxBitStages) {
    set.fail(fmt::format("has {} stages, expected 1 to {}", config.layers.size(), kMaxBitStages));
  }
  config.norm_groups = options.norm_groups > 0 ? options.norm_groups : config.norm_groups;
  config.weight_norm_eps = kBitWeightNormEps;
  config.image_size = kBitImageSize;
  config.pool_type = "avg";
  config.class_token = false;
  config.timm_model_name = nearest_bit_name(config);
  return config;
}

/// The sum of the tables that a text tower was trained with: some have a second one by mistake.
LazyTensor text_positions(TensorSet& set, TextConfig& config) {
  const std::string root = "pos_embedding", second = "Encoder_0/pos_embedding";
  const auto name = set.has(root) || !set.has(second) ? root : second;
  config.context_length = set.size(name, 1, 3);
  const Shape shape{1, config.context_length, config.width};
  auto table = set.take(name, shape);
  if (name == root && set.has(second)) table = added(std::move(table), set.take(second, shape));
  return renamed(reshaped(std::move(table), {config.context_length, config.width}), "positional_embedding");
}

void finish_text(TensorSet& set, const TextTowerOptions& options, const std::string& projection,
                 TextTowerWeights& tower) {
  auto& config = tower.config;
  config.proj_bias = options.keep_head && set.has("head/bias");
  const auto out = append_head(set, options.keep_head, config.width, projection, tower.tensors);
  config.proj_type = out > 0 ? "linear" : "none";
  tower.embed_dim = out > 0 ? out : config.width;
  set.finish();
}

/// The name in Google's files of what transformers calls transformer.NAME.
std::string bert_source(const std::string& name) {
  static const NameParts kParts = {
      {"transformer.embeddings.word_embeddings.weight", "embedder/embedders_token_ids/embedding"},
      {"transformer.embeddings.position_embeddings.weight", "embedder/embedders_position_ids/embedding"},
      {"transformer.embeddings.token_type_embeddings.weight", "embedder/embedders_segment_ids/embedding"},
      {"transformer.embeddings.LayerNorm.", "layer_norm."},
      {"attention.self.", "attention_block/attention_layer/"},
      {"attention.output.dense.", "attention_block/dense_layer."},
      {"attention.output.LayerNorm.", "attention_block/layer_norm."},
      {"intermediate.dense.", "mlp_block/mlp/dense_layer."},
      {"output.dense.", "mlp_block/dense_layer."},
      {"output.LayerNorm.", "mlp_block/layer_norm."},
      {"layer_norm.weight", "layer_norm/scale"},
      {".weight", "/kernel"},
      {".bias", "/bias"}};
  const std::string root = "BertEncoder_0/";
  const auto layer = indexed(name, "transformer.encoder.layer.");
  if (!layer) return root + replace_parts(name, kParts);
  return fmt::format("{}encoder_block/layer_sequence/layers_{}/{}", root, layer->index,
                     replace_parts(layer->rest, kParts));
}

TextConfig infer_bert(const TensorSet& set, const TextTowerOptions& options) {
  const std::string embedder = "BertEncoder_0/embedder/embedders_",
                    layers = "BertEncoder_0/encoder_block/layer_sequence/";
  TextConfig config;
  config.vocab_size = set.size(embedder + "token_ids/embedding", 0, 2);
  config.width = set.size(embedder + "token_ids/embedding", 1, 2);
  config.max_positions = set.size(embedder + "position_ids/embedding", 0, 2);
  config.token_types = set.size(embedder + "segment_ids/embedding", 0, 2);
  config.layers = set.count(layers + "layers_", "/");
  config.mlp_ratio = mlp_ratio_of(config.width, set.size(layers + "layers_0/mlp_block/mlp/dense_layer/kernel", 1, 2));
  config.heads = options.heads;
  config.gelu_tanh = true;
  config.tokenizer_strip_sep = true;
  name_bert(config);
  return config;
}

}  // namespace

ImageTowerWeights read_jax_vit(Tensors tensors, const ImageTowerOptions& options) {
  ImageTowerWeights tower;
  tower.format = "ViT (.npz)";
  TensorSet set(tower.format, unstacked(std::move(tensors)));
  const auto sizes = infer_encoder(set, "Transformer/", set.size("embedding/kernel", 3, 4));
  auto& config = tower.config;
  auto& result = tower.tensors;
  config = infer_vit(set, sizes);
  append_positions(set, config, result);
  append_patch_embedding(set, "embedding", "trunk.patch_embed.proj", config, result);
  for (int64_t i = 0; i < sizes.layers; ++i) {
    append_block(set, fmt::format("Transformer/encoderblock_{}/", i), fmt::format("trunk.blocks.{}.", i), kTimmNames,
                 sizes, result);
  }
  append_norm(set, "Transformer/encoder_norm", "trunk.norm", sizes.width, result);
  if (config.pool_type == "map") append_map_head(set, map_head_place(set), "trunk.attn_pool.", sizes, result);
  if (config.pre_logits) append_dense(set, "pre_logits", "trunk.pre_logits.fc", sizes.width, sizes.width, result);
  config.timm_model_name = nearest_vit_name(config);
  finish_image(set, options, tower);
  return tower;
}

ImageTowerWeights read_jax_mixer(Tensors tensors, const ImageTowerOptions& options) {
  ImageTowerWeights tower;
  tower.format = "MLP-Mixer (.npz)";
  TensorSet set(tower.format, with_new_mixer_names(std::move(tensors)));
  auto& config = tower.config;
  const std::string first = "MixerBlock_0/";
  config.width = set.size("stem/kernel", 3, 4);
  config.patch_size = set.size("stem/kernel", 0, 4);
  config.layers = {set.count("MixerBlock_", "/")};
  const auto patches = set.size(first + "token_mixing/Dense_0/kernel", 0, 2);
  config.token_mlp_width = set.size(first + "token_mixing/Dense_0/kernel", 1, 2);
  const auto hidden = set.size(first + "channel_mixing/Dense_0/kernel", 1, 2);
  config.mlp_ratio = mlp_ratio_of(config.width, hidden);
  if (square_side(patches) == 0) set.fail(fmt::format("its {} patches are not a square grid", patches));
  config.image_size = square_side(patches) * config.patch_size;
  config.gelu_tanh = true;
  config.norm_eps = kVitNormEps;
  config.pool_type = "avg";
  config.class_token = false;
  config.timm_model_name = nearest_mixer_name(config);
  auto& result = tower.tensors;
  append_patch_embedding(set, "stem", "trunk.stem.proj", config, result);
  for (int64_t i = 0; i < config.layers[0]; ++i) {
    const auto source = fmt::format("MixerBlock_{}/", i), target = fmt::format("trunk.blocks.{}.", i);
    append_norm(set, source + "LayerNorm_0", target + "norm1", config.width, result);
    append_mixer_mlp(set, source + "token_mixing", target + "mlp_tokens", patches, config.token_mlp_width, result);
    append_norm(set, set.first_of(source, kSecondNorms), target + "norm2", config.width, result);
    append_mixer_mlp(set, source + "channel_mixing", target + "mlp_channels", config.width, hidden, result);
  }
  append_norm(set, "pre_head_layer_norm", "trunk.norm", config.width, result);
  finish_image(set, options, tower);
  return tower;
}

ImageTowerWeights read_jax_bit(Tensors tensors, const ImageTowerOptions& options) {
  ImageTowerWeights tower;
  tower.format = "BiT ResNetV2 (.npz)";
  TensorSet set(tower.format, with_plain_bit_names(std::move(tensors)));
  tower.config = infer_bit(set, options);
  for (const auto& [name, shape] : bit_tensors(tower.config)) {
    const auto source = bit_source(name);
    auto tensor = shape.size() == 4 ? permuted(set.take(source, {shape[2], shape[3], shape[1], shape[0]}), {3, 2, 0, 1})
                                    : set.take(source, shape);
    tower.tensors.push_back(renamed(std::move(tensor), name));
  }
  set.drop("resnet/head/");
  finish_image(set, options, tower);
  return tower;
}

TextTowerWeights read_jax_text(Tensors tensors, const TextTowerOptions& options) {
  TextTowerWeights tower;
  tower.format = "text encoder (.npz)";
  TensorSet set(tower.format, unstacked(std::move(tensors)));
  auto& config = tower.config;
  config.vocab_size = set.size("Embed_0/embedding", 0, 2);
  config.width = set.size("Embed_0/embedding", 1, 2);
  const auto sizes = infer_encoder(set, "Encoder_0/", config.width);
  config.heads = sizes.heads;
  config.layers = sizes.layers;
  config.mlp_ratio = mlp_ratio_of(sizes.width, sizes.mlp_width);
  config.no_causal_mask = true;
  config.gelu_tanh = true;
  config.norm_eps = kVitNormEps;
  config.pool_type = set.has("MAPHead_0/probe") ? "map" : "last";
  auto& result = tower.tensors;
  result.push_back(text_positions(set, config));
  result.push_back(renamed(set.take("Embed_0/embedding", {config.vocab_size, config.width}), "token_embedding.weight"));
  for (int64_t i = 0; i < sizes.layers; ++i) {
    append_block(set, fmt::format("Encoder_0/encoderblock_{}/", i), fmt::format("transformer.resblocks.{}.", i),
                 kClipNames, sizes, result);
  }
  append_norm(set, "Encoder_0/encoder_norm", "ln_final", sizes.width, result);
  if (config.pool_type == "map") append_map_head(set, "MAPHead_0/", "attn_pool.", sizes, result);
  finish_text(set, options, "text_projection", tower);
  return tower;
}

TextTowerWeights read_jax_bert(Tensors tensors, const TextTowerOptions& options) {
  TextTowerWeights tower;
  tower.format = "BERT (.npz)";
  TensorSet set(tower.format, std::move(tensors));
  tower.config = infer_bert(set, options);
  for (const auto& [name, shape] : bert_tensors(tower.config)) {
    auto source = bert_source(name);
    const bool is_kernel = source.ends_with("/kernel");
    auto tensor = is_kernel ? permuted(set.take(source, {shape[1], shape[0]}), {1, 0}) : set.take(source, shape);
    tower.tensors.push_back(renamed(std::move(tensor), name));
  }
  finish_text(set, options, "proj", tower);
  return tower;
}

}  // namespace contrastive::models::detail
