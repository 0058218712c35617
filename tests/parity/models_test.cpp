#include <algorithm>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include "contrastive/core/config_node.h"
#include "contrastive/core/safetensors.h"
#include "contrastive/loss/contrastive_loss.h"
#include "contrastive/models/clip_model.h"
#include "contrastive/optim/adamw.h"

#include "tests/support/paths.h"
#include "tests/support/tensors.h"

/// Tolerances are those of the fixtures' README; trajectories use the noise that the fixture itself states.
namespace contrastive {
namespace {

constexpr double kFeatureTolerance = 1e-5;
constexpr double kTrajectoryNoiseFactor = 5;

/// A folder of models/ and what stands in it.
struct Fixture {
  explicit Fixture(const std::filesystem::path& directory)
      : config(models::model_config_from_file(directory / "config.json")),
        noise(load_config(directory / "noise.json")),
        state(SafetensorsFile(directory / "state.safetensors").tensors()),
        io(test::by_name(SafetensorsFile(directory / "io.safetensors").tensors())),
        trajectory(directory / "trajectory.safetensors") {}

  models::ClipModel model() const {
    models::ClipModel result(config);
    result->load_state(state);
    return result;
  }

  models::ModelConfig config;
  ConfigNode noise;
  NamedTensors state;
  std::map<std::string, torch::Tensor> io;
  SafetensorsFile trajectory;
};

/// A model's folder, with a name that is unique over both places.
struct FixtureFolder {
  std::string name;
  std::filesystem::path path;
};

void add_folders(const std::filesystem::path& place, const std::string& prefix, std::vector<FixtureFolder>& folders) {
  for (const auto& entry : std::filesystem::directory_iterator(place)) {
    if (entry.is_directory()) folders.push_back({prefix + entry.path().filename().string(), entry.path()});
  }
}

/// The repository's own models, and those of the parity fixtures where there are any.
std::vector<FixtureFolder> model_folders() {
  std::vector<FixtureFolder> folders;
  add_folders(test::own_fixtures_dir() / "models", "own_", folders);
  if (const auto fixtures = test::fixtures_dir()) add_folders(*fixtures / "models", "", folders);
  std::sort(folders.begin(), folders.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  return folders;
}

class ModelParityTest : public ::testing::TestWithParam<FixtureFolder> {
 protected:
  // As the reference ran; the models are too small for more.
  static void SetUpTestSuite() { at::set_num_threads(1); }

  Fixture fixture() const { return Fixture(GetParam().path); }
};

/// Features, logits and loss of one forward pass against the entries that start with `prefix`.
void expect_outputs(const Fixture& fixture, const std::string& prefix, models::ClipModel& model) {
  const auto& io = fixture.io;
  const auto expect = [&](const std::string& name, const torch::Tensor& actual, test::Tolerance tolerance) {
    EXPECT_TRUE(test::tensors_near(prefix + name, actual, io.at(prefix + name), tolerance));
  };
  const test::Tolerance features{kFeatureTolerance, kFeatureTolerance};
  const auto image = model->encode_image(io.at("images")), text = model->encode_text(io.at("tokens"));
  const auto scale = model->logit_scale.exp();
  expect("image_features", image, features);
  expect("text_features", text, features);
  const auto image_norm = models::l2_normalize(image), text_norm = models::l2_normalize(text);
  expect("image_features_norm", image_norm, features);
  expect("text_features_norm", text_norm, features);
  expect("logits_per_image", scale * image_norm.mm(text_norm.t()), {1e-5 * (1 + scale.item<double>()), 0});
  expect("loss", loss::contrastive_loss(image_norm, text_norm, scale).loss, {1e-5, 1e-6});
}

TEST_P(ModelParityTest, EvalModeOutputsEqualTheReference) {
  const auto reference = fixture();
  auto model = reference.model();
  model->eval();
  const at::NoGradGuard no_grad;
  expect_outputs(reference, "", model);
}

TEST_P(ModelParityTest, TrainModeOutputsAndBuffersEqualTheReference) {
  const auto reference = fixture();
  auto model = reference.model();
  model->train();
  const at::NoGradGuard no_grad;
  expect_outputs(reference, reference.io.contains("train.loss") ? "train." : "", model);
  const auto state = test::by_name(model->state());
  for (const auto& [name, buffer] : test::by_name({reference.io.begin(), reference.io.end()}, "buffer.")) {
    EXPECT_TRUE(test::tensors_near(name, state.at(name), buffer, {kFeatureTolerance, kFeatureTolerance}));
  }
}

TEST_P(ModelParityTest, GradientsOfEveryParameterEqualTheReference) {
  const auto reference = fixture();
  auto model = reference.model();
  model->train();
  const auto output = model->forward(reference.io.at("images"), reference.io.at("tokens"));
  loss::contrastive_loss(output.image_features, output.text_features, output.logit_scale).loss.backward();

  const auto expected = test::by_name({reference.io.begin(), reference.io.end()}, "grad.");
  double largest = 0;
  for (const auto& [name, gradient] : expected) largest = std::max(largest, gradient.abs().max().item<double>());
  const auto parameters = model->named_trainable();
  EXPECT_EQ(parameters.size(), expected.size());
  for (const auto& [name, parameter] : parameters) {
    ASSERT_TRUE(parameter.grad().defined()) << name;
    EXPECT_TRUE(test::tensors_near(name, parameter.grad(), expected.at(name), {2e-6 * largest, 1e-4}));
  }
}

/// Everything but the key biases, whose true gradient is zero: what Adam makes of its rounding noise means nothing.
torch::Tensor without_key_bias(const std::string& name, const torch::Tensor& tensor) {
  if (name.ends_with("k_proj.bias")) return tensor.new_zeros(tensor.sizes());
  if (!name.ends_with("in_proj_bias")) return tensor;
  auto result = tensor.clone();
  const auto width = tensor.size(0) / 3;
  result.narrow(0, width, width).zero_();
  return result;
}

optim::AdamWOptions adamw_options(const ConfigNode& settings) {
  const auto betas = test::numbers_at(settings, "betas");
  return {.beta1 = betas.at(0),
          .beta2 = betas.at(1),
          .eps = test::number_at(settings, "eps"),
          .weight_decay = test::number_at(settings, "weight_decay")};
}

TEST_P(ModelParityTest, TrainingEqualsTheReferenceForSomeSteps) {
  const auto reference = fixture();
  const auto expected = test::by_name(reference.trajectory.tensors());
  const auto image_scale = test::number_at(test::meta_of(reference.trajectory), "image_scale");
  auto model = reference.model();
  model->train();
  const auto settings = test::meta_of(reference.trajectory);
  optim::AdamW optimizer(model->named_trainable(), adamw_options(settings), optim::open_clip_decays);
  const auto lr = test::number_at(settings, "lr");
  const auto steps = expected.at("losses").size(0);
  std::vector<torch::Tensor> losses, scales;
  for (int64_t step = 0; step < steps; ++step) {
    const auto images = expected.at("images_q")[step].to(at::kFloat) * image_scale;
    const auto output = model->forward(images, expected.at("tokens")[step]);
    const auto loss = loss::contrastive_loss(output.image_features, output.text_features, output.logit_scale).loss;
    optimizer.zero_grad();
    loss.backward();
    optimizer.step(lr);
    model->clamp_logit_scale();
    losses.push_back(loss.detach());
    scales.push_back(model->logit_scale.detach().clone());
  }

  const auto tolerance = [&](const std::string& noise) {
    return test::Tolerance{1e-5 + kTrajectoryNoiseFactor * test::number_at(reference.noise, noise), 0};
  };
  EXPECT_TRUE(test::tensors_near("losses", at::stack(losses), expected.at("losses"), tolerance("trajectory_loss_abs")));
  EXPECT_TRUE(test::tensors_near("logit_scale", at::stack(scales), expected.at("logit_scale"),
                                 tolerance("trajectory_param_abs")));
  for (const auto& [name, tensor] : model->state()) {
    EXPECT_TRUE(test::tensors_near(name, without_key_bias(name, tensor.detach()),
                                   without_key_bias(name, expected.at("final." + name)),
                                   tolerance("trajectory_param_abs")));
  }
}

TEST_P(ModelParityTest, DoublePrecisionTrainingEqualsTheReferenceTightly) {
  const auto reference = fixture();
  const auto expected = test::by_name(reference.trajectory.tensors());
  const auto image_scale = test::number_at(test::meta_of(reference.trajectory), "image_scale");
  auto model = reference.model();
  model->to(at::kDouble);
  model->train();
  const auto settings = test::meta_of(reference.trajectory);
  optim::AdamW optimizer(model->named_trainable(), adamw_options(settings), optim::open_clip_decays);
  const auto lr = test::number_at(settings, "lr");
  std::vector<torch::Tensor> losses;
  for (int64_t step = 0; step < expected.at("losses_fp64").size(0); ++step) {
    const auto images = expected.at("images_q")[step].to(at::kDouble) * image_scale;
    const auto output = model->forward(images, expected.at("tokens")[step]);
    losses.push_back(loss::contrastive_loss(output.image_features, output.text_features, output.logit_scale).loss);
    optimizer.zero_grad();
    losses.back().backward();
    optimizer.step(lr);
    model->clamp_logit_scale();
  }
  EXPECT_TRUE(test::tensors_near("losses_fp64", at::stack(losses), expected.at("losses_fp64"), {1e-9, 1e-9}));
}

TEST_P(ModelParityTest, StateHasTheNamesShapesAndDtypesOfTheReference) {
  const auto reference = fixture();
  const auto expected = test::by_name(reference.state);
  const auto actual = test::by_name(models::ClipModel(reference.config)->state());
  EXPECT_EQ(actual.size(), expected.size());
  for (const auto& [name, tensor] : expected) {
    ASSERT_TRUE(actual.contains(name)) << name;
    EXPECT_EQ(actual.at(name).sizes(), tensor.sizes()) << name;
    EXPECT_EQ(actual.at(name).scalar_type(), tensor.scalar_type()) << name;
  }
}

TEST_P(ModelParityTest, ConfigSurvivesWritingAndReading) {
  const auto reference = fixture();
  const auto json = to_json(models::to_node(reference.config));
  EXPECT_EQ(models::load_model_config(parse_config(json, "round trip")), reference.config) << json;
}

INSTANTIATE_TEST_SUITE_P(Fixtures, ModelParityTest, ::testing::ValuesIn(model_folders()),
                         [](const auto& item) { return item.param.name; });

}  // namespace
}  // namespace contrastive
