// Towers in the layouts of Google's files against the code that wrote them (big_vision, vision_transformer). Sizes come
// from the fixtures' config.json; tolerances are those of their README.
#include <algorithm>
#include <cctype>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "contrastive/core/config_node.h"
#include "contrastive/core/safetensors.h"
#include "contrastive/core/tensor_file.h"
#include "contrastive/loss/contrastive_loss.h"
#include "contrastive/loss/sigmoid_loss.h"
#include "contrastive/models/clip_model.h"
#include "contrastive/models/image_tower.h"
#include "contrastive/models/position_embeddings.h"
#include "contrastive/models/text_tower.h"
#include "contrastive/models/timm_vision_transformer.h"
#include "contrastive/models/tower_weights.h"

#include "tests/support/paths.h"
#include "tests/support/tensors.h"

namespace contrastive {
namespace {

using test::number_at;
using test::tensors_near;
using Tensors = std::map<std::string, torch::Tensor>;

constexpr test::Tolerance kTower{2e-5, 0};
constexpr test::Tolerance kBit{5e-5, 0};
constexpr test::Tolerance kEmbedding{5e-6, 0};
constexpr test::Tolerance kLogits{5e-5, 0};
constexpr test::Tolerance kGradient{1e-5, 1e-4};

struct Case {
  std::string name;
  ConfigNode settings;
};

/// The cases of config.json that have, or haven't, sections of these names.
std::vector<Case> cases_with(const std::vector<std::string>& sections, const std::vector<std::string>& without) {
  std::vector<Case> cases;
  const auto fixtures = test::lit_fixtures_dir();
  if (!fixtures) return cases;
  const auto config = load_config(*fixtures / "config.json");
  for (const auto& entry : config.find("cases")->entries) {
    const auto has = [&](const std::string& key) { return entry.value.find(key) != nullptr; };
    const bool fits = has("checkpoint") && std::all_of(sections.begin(), sections.end(), has) &&
                      std::none_of(without.begin(), without.end(), has);
    if (fits) cases.push_back({entry.key, entry.value});
  }
  return cases;
}

std::string case_name(const ::testing::TestParamInfo<Case>& info) {
  auto name = info.param.name;
  std::replace_if(
      name.begin(), name.end(), [](unsigned char c) { return std::isalnum(c) == 0; }, '_');
  return name;
}

class LitCase : public ::testing::TestWithParam<Case> {
 protected:
  static std::filesystem::path fixtures() { return *test::lit_fixtures_dir(); }

  const ConfigNode& section(const std::string& key) const { return *GetParam().settings.find(key); }

  int64_t size_of(const std::string& key, const std::string& field) const {
    return static_cast<int64_t>(number_at(section(key), field));
  }

  std::vector<LazyTensor> checkpoint() const {
    return open_tensor_file(fixtures() / section("checkpoint").scalar).tensors;
  }

  Tensors expected() const { return test::by_name(SafetensorsFile(fixtures() / section("expected").scalar).tensors()); }
};

torch::Tensor channels_first(const torch::Tensor& images) {
  return images.permute({0, 3, 1, 2}).contiguous();
}

/// Copies weights into a tower; every tensor on each side must have its counterpart.
void load(models::TowerImpl& tower, const std::vector<LazyTensor>& tensors) {
  const at::NoGradGuard no_grad;
  std::map<std::string, torch::Tensor> parameters;
  for (const auto& parameter : tower.named_parameters()) {
    parameters.emplace(tower.checkpoint_name(parameter.key()), parameter.value());
  }
  for (const auto& tensor : tensors) {
    const auto found = parameters.find(tensor.name);
    ASSERT_NE(found, parameters.end()) << tensor.name;
    const auto values = tensor.load();
    ASSERT_EQ(values.sizes().vec(), tensor.shape) << tensor.name;
    ASSERT_EQ(values.scalar_type(), tensor.dtype) << tensor.name;
    ASSERT_EQ(values.sizes(), found->second.sizes()) << tensor.name;
    found->second.copy_(values);
    parameters.erase(found);
  }
  for (const auto& [name, parameter] : parameters) ADD_FAILURE() << "nothing was loaded into " << name;
}

std::shared_ptr<models::ImageTowerImpl> image_tower(const models::ImageTowerWeights& weights) {
  models::ModelConfig config;
  config.vision_cfg = weights.config;
  config.embed_dim = weights.embed_dim;
  auto tower = models::make_image_tower(config, torch::kCPU);
  load(*tower, weights.tensors);
  tower->eval();
  return tower;
}

/// With the position table for another image size.
void resize(models::ImageTowerWeights& weights, int64_t image_size) {
  weights.config.image_size = image_size;
  models::ModelConfig config;
  config.vision_cfg = weights.config;
  for (auto& tensor : weights.tensors) tensor.name = "visual." + tensor.name;
  models::fit_positions(weights.tensors, config, models::PositionResize::bilinear);
  for (auto& tensor : weights.tensors) tensor.name = tensor.name.substr(std::string("visual.").size());
}

// --- towers of images alone ---

class LitImageTowerTest : public LitCase {
 protected:
  models::ImageTowerWeights weights() const {
    models::ImageTowerOptions options{.keep_head = true};
    if (is("bit_resnetv2")) options.norm_groups = size_of("arch", "groups");
    auto result = models::image_tower_weights(checkpoint(), options);
    const auto size = static_cast<int64_t>(number_at(GetParam().settings, "image_size"));
    if (is("bit_resnetv2")) {
      result.config.image_size = size;
    } else {
      EXPECT_EQ(result.config.image_size, size_of("arch", "image"));
      if (size != result.config.image_size) resize(result, size);
    }
    return result;
  }

  bool is(const std::string& type) const { return section("arch").find("type")->scalar == type; }

  torch::Tensor images() const {
    const auto size = section("image_size").scalar;
    return channels_first(SafetensorsFile(fixtures() / "images.safetensors").tensor("nhwc/" + size));
  }

  /// BiT's classifier is a convolution, which is never kept.
  torch::Tensor bit_logits(const torch::Tensor& features) const {
    Tensors head;
    for (const auto& tensor : checkpoint()) {
      if (tensor.name.find("/head/") != std::string::npos) head.emplace(tensor.name, tensor.load());
    }
    return features.mm(head.at("resnet/head/conv2d/kernel").flatten(0, 2)) + head.at("resnet/head/conv2d/bias");
  }

  void expect_features(const Tensors& values, const std::string& prefix, models::ImageTowerImpl& tower) const {
    const at::NoGradGuard no_grad;
    const auto tolerance = is("bit_resnetv2") ? kBit : kTower;
    const auto features = tower.forward_features(images());
    EXPECT_TRUE(tensors_near(prefix + "pre_logits", features, values.at(prefix + "pre_logits"), tolerance));
    if (!values.contains(prefix + "logits")) return;
    const auto logits = is("bit_resnetv2") ? bit_logits(features) : tower.project(features);
    EXPECT_TRUE(tensors_near(prefix + "logits", logits, values.at(prefix + "logits"), tolerance));
  }
};

TEST_P(LitImageTowerTest, FeaturesAndLogitsEqualTheReference) {
  const auto tower = image_tower(weights());
  expect_features(expected(), is("bit_resnetv2") ? "zero_pad/" : "", *tower);
}

TEST_P(LitImageTowerTest, FeaturesWithTheExactGeluEqualTheReference) {
  const auto values = expected();
  if (!values.contains("erf/pre_logits")) GTEST_SKIP() << "the case has no values with exact GELU";
  auto weights_of_case = weights();
  weights_of_case.config.gelu_tanh = false;
  expect_features(values, "erf/", *image_tower(weights_of_case));
}

TEST_P(LitImageTowerTest, TokensEqualTheReference) {
  const auto values = expected();
  if (!values.contains("tokens")) GTEST_SKIP() << "the case has no tokens";
  const auto tower = image_tower(weights());
  const at::NoGradGuard no_grad;
  auto& vit = dynamic_cast<models::TimmVisionTransformerImpl&>(*tower);
  EXPECT_TRUE(tensors_near("tokens", vit.forward_tokens(images()), values.at("tokens"), kTower));
}

TEST_P(LitImageTowerTest, PositionsEqualTheReference) {
  const auto values = expected();
  if (!values.contains("pos_embedding")) GTEST_SKIP() << "the case does not resize";
  const auto resized = weights();
  for (const auto& tensor : resized.tensors) {
    if (tensor.name != "trunk.pos_embed") continue;
    const auto patches = tensor.load().slice(1, resized.config.class_token ? 1 : 0);
    EXPECT_TRUE(tensors_near("pos_embedding", patches, values.at("pos_embedding"), {1e-6, 0}));
  }
}

INSTANTIATE_TEST_SUITE_P(Fixtures, LitImageTowerTest, ::testing::ValuesIn(cases_with({"arch"}, {})), case_name);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(LitImageTowerTest);

// --- towers of texts alone ---

class LitTextTowerTest : public LitCase {};

TEST_P(LitTextTowerTest, FeaturesAndEmbeddingsEqualTheReference) {
  const auto values = expected();
  const auto weights = models::text_tower_weights(checkpoint(), {.heads = size_of("text", "heads")});
  models::ModelConfig config;
  config.text_cfg = weights.config;
  config.embed_dim = weights.embed_dim;
  config.custom_text = true;
  const auto tower = models::make_text_tower(config, torch::kCPU);
  load(*tower, weights.tensors);
  tower->eval();
  const at::NoGradGuard no_grad;
  const auto ids = values.at("ids").to(at::kLong);
  EXPECT_TRUE(tensors_near("pre_logits", tower->forward_features(ids), values.at("pre_logits"), kTower));
  EXPECT_TRUE(tensors_near("logits", tower->forward(ids), values.at("logits"), kTower));
}

INSTANTIATE_TEST_SUITE_P(Fixtures, LitTextTowerTest, ::testing::ValuesIn(cases_with({"text"}, {"image"})), case_name);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(LitTextTowerTest);

// --- both towers ---

class LitModelTest : public LitCase {
 protected:
  models::TwoTowerWeights weights() const {
    models::TwoTowerOptions options;
    options.text.heads = size_of("text", "heads");
    return models::two_tower_weights(checkpoint(), options);
  }

  static models::ClipModel model_of(const models::TwoTowerWeights& weights) {
    models::ClipModel model(weights.config);
    model->load_state(weights.tensors);
    model->eval();
    return model;
  }

  models::ClipModel model() const { return model_of(weights()); }
};

/// Compares what the reference has values for.
class Comparison {
 public:
  explicit Comparison(const Tensors& values) : values_(values) {}

  void operator()(const std::string& name, const torch::Tensor& actual, test::Tolerance tolerance) const {
    const auto found = values_.find(name);
    if (found == values_.end()) return;
    const auto wanted = actual.dim() == 0 ? found->second.reshape({}) : found->second;
    EXPECT_TRUE(tensors_near(name, actual, wanted, tolerance));
  }

 private:
  const Tensors& values_;
};

TEST_P(LitModelTest, EmbeddingsAndLogitsEqualTheReference) {
  const auto values = expected();
  auto clip = model();
  const at::NoGradGuard no_grad;
  const auto images = channels_first(values.at("images")), ids = values.at("ids").to(at::kLong);
  const auto image = clip->encode_image(images), text = clip->encode_text(ids);
  const auto zimg = models::l2_normalize(image), ztxt = models::l2_normalize(text);
  const auto similarity = zimg.mm(ztxt.t());
  auto logits = clip->logit_scale.exp() * similarity;
  if (clip->logit_bias.defined()) logits = logits + clip->logit_bias;
  const Comparison compare(values);
  compare("txt_pre_logits", clip->text->forward_features(ids), kTower);
  compare("zimg_raw", image, kTower);
  compare("ztxt_raw", text, kTower);
  compare("zimg", zimg, kEmbedding);
  compare("ztxt", ztxt, kEmbedding);
  compare("similarity", similarity, kEmbedding);
  compare("scale", clip->logit_scale.exp(), kEmbedding);
  if (clip->logit_bias.defined()) compare("bias", clip->logit_bias, kEmbedding);
  compare("logits", logits, kLogits);
  compare("probs_image_to_text", logits.softmax(1), kLogits);
}

TEST_P(LitModelTest, EmbeddingsWithTheExactGeluEqualTheReference) {
  const auto values = expected();
  if (!values.contains("erf/zimg")) GTEST_SKIP() << "the case has no values with exact GELU";
  auto exact = weights();
  exact.config.vision_cfg.gelu_tanh = exact.config.text_cfg.gelu_tanh = false;
  auto clip = model_of(exact);
  const at::NoGradGuard no_grad;
  const Comparison compare(values);
  compare("erf/zimg", models::l2_normalize(clip->encode_image(channels_first(values.at("images")))), kEmbedding);
  compare("erf/ztxt", models::l2_normalize(clip->encode_text(values.at("ids").to(at::kLong))), kEmbedding);
}

TEST_P(LitModelTest, LossesEqualTheReference) {
  const auto values = expected();
  auto clip = model();
  const at::NoGradGuard no_grad;
  const auto output = clip->forward(channels_first(values.at("images")), values.at("ids").to(at::kLong));
  const auto& image = output.image_features;
  const auto& text = output.text_features;
  const auto softmax = [&](int64_t begin, int64_t size) {
    return loss::contrastive_loss(image.narrow(0, begin, size), text.narrow(0, begin, size), output.logit_scale).loss;
  };
  const auto rows = image.size(0), half = rows / 2;
  const Comparison compare(values);
  compare("loss/softmax", softmax(0, rows), kLogits);
  compare("loss/softmax_local2", (softmax(0, half) + softmax(half, half)) / 2, kLogits);
  if (output.logit_bias.defined()) {
    compare("loss/sigmoid", loss::sigmoid_loss(image, text, output.logit_scale, output.logit_bias).loss, kLogits);
  }
  const std::string sigmoid = "loss/sigmoid_b";
  for (const auto& [name, value] : values) {
    if (!name.starts_with(sigmoid)) continue;
    const auto bias = at::scalar_tensor(std::stod(name.substr(sigmoid.size())), at::kFloat);
    compare(name, loss::sigmoid_loss(image, text, output.logit_scale, bias).loss, kLogits);
  }
}

/// The gradients in a file, which have the names and shapes of its weights, as those of our parameters: what a reader
/// does with weights (other order and names) it may do with gradients, too.
Tensors gradients_by_our_names(const Tensors& values, int64_t text_heads) {
  NamedTensors text;
  Tensors result;
  for (const auto& [name, gradient] : values) {
    if (name.starts_with("grad/txt/")) text.emplace_back(name.substr(std::string("grad/txt/").size()), gradient);
    if (name == "grad/t") result["logit_scale"] = gradient.reshape({});
    if (name == "grad/img/head/kernel") result["visual.head.proj.weight"] = gradient.t();
    if (name == "grad/img/head/bias") result["visual.head.proj.bias"] = gradient;
  }
  for (const auto& tensor : models::text_tower_weights(lazy(text), {.heads = text_heads}).tensors) {
    result["text." + tensor.name] = tensor.load();
  }
  return result;
}

TEST_P(LitModelTest, GradientsBesideALockedImageTowerEqualTheReference) {
  const auto values = expected();
  if (!values.contains("grad/t")) GTEST_SKIP() << "the case has no gradients";
  const auto wanted = gradients_by_our_names(values, size_of("text", "heads"));
  auto clip = model();
  clip->train();
  clip->visual->lock({});
  const auto output = clip->forward(channels_first(values.at("images")), values.at("ids").to(at::kLong));
  loss::contrastive_loss(output.image_features, output.text_features, output.logit_scale).loss.backward();
  const auto trainable = clip->named_trainable();
  EXPECT_EQ(trainable.size(), wanted.size());
  for (const auto& [name, parameter] : trainable) {
    ASSERT_TRUE(wanted.contains(name)) << name;
    ASSERT_TRUE(parameter.grad().defined()) << name;
    EXPECT_TRUE(tensors_near(name, parameter.grad(), wanted.at(name), kGradient));
  }
}

/// Gradients of a loss for the normalised embeddings that the file has.
template <typename Loss>
void expect_embedding_gradients(const Tensors& values, const std::string& prefix, const Loss& loss) {
  const auto image = values.at("zimg").clone().requires_grad_(), text = values.at("ztxt").clone().requires_grad_();
  loss(image, text, values.at("scale").reshape({})).loss.backward();
  EXPECT_TRUE(tensors_near(prefix + "zimg", image.grad(), values.at(prefix + "zimg"), kGradient));
  EXPECT_TRUE(tensors_near(prefix + "ztxt", text.grad(), values.at(prefix + "ztxt"), kGradient));
}

TEST_P(LitModelTest, GradientsOfEmbeddingsEqualTheReference) {
  const auto values = expected();
  if (!values.contains("grad_z/zimg")) GTEST_SKIP() << "the case has no gradients";
  expect_embedding_gradients(values, "grad_z/", [](const auto& image, const auto& text, const auto& scale) {
    return loss::contrastive_loss(image, text, scale);
  });
}

INSTANTIATE_TEST_SUITE_P(Fixtures, LitModelTest, ::testing::ValuesIn(cases_with({"image", "text"}, {})), case_name);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(LitModelTest);

TEST(LitFixturesTest, AreThere) {
  if (!test::lit_fixtures_dir()) GTEST_SKIP() << "no LiT parity fixtures (CONTRASTIVE_FIXTURES_LIT)";
  EXPECT_FALSE(cases_with({"arch"}, {}).empty());
  EXPECT_FALSE(cases_with({"image", "text"}, {}).empty());
}

}  // namespace
}  // namespace contrastive
