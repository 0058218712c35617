#include "contrastive/models/tower.h"

#include <set>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include "contrastive/core/error.h"
#include "contrastive/loss/model_loss.h"
#include "contrastive/models/clip_model.h"
#include "contrastive/optim/adamw.h"

namespace contrastive::models {
namespace {

constexpr int64_t kBatch = 3;

TextConfig tiny_text() {
  return {.context_length = 7, .vocab_size = 40, .width = 16, .heads = 2, .layers = 3};
}

TextConfig tiny_bert() {
  auto config = tiny_text();
  config.hf_model_name = "bert-base-uncased";
  config.max_positions = 9;
  config.no_causal_mask = true;
  config.pool_type = "first";
  return config;
}

VisionConfig tiny_timm(const std::string& name) {
  VisionConfig config;
  config.timm_model_name = name;
  config.image_size = 32;
  config.patch_size = 8;
  config.width = 32;
  config.head_width = 8;
  config.layers = {3};
  config.proj_type = "linear";
  config.proj_bias = true;
  return config;
}

/// One of every kind of tower.
std::vector<std::pair<std::string, ModelConfig>> models() {
  ModelConfig base;
  base.embed_dim = 12;
  base.text_cfg = tiny_text();
  auto vit = base, resnet = base, timm = base, siglip = base, bit = base, mixer = base;
  vit.vision_cfg = {.layers = {3}, .width = 32, .head_width = 8, .patch_size = 8, .image_size = 32};
  resnet.vision_cfg = {.layers = {1, 2, 1, 1}, .width = 8, .head_width = 16, .image_size = 32};
  timm.vision_cfg = tiny_timm("vit_base_patch16_224");
  timm.text_cfg = tiny_bert();
  timm.custom_text = true;
  siglip.vision_cfg = tiny_timm("vit_base_patch16_siglip_224");
  siglip.vision_cfg.class_token = false;
  siglip.vision_cfg.pool_type = "map";
  bit.vision_cfg = tiny_timm("resnetv2_50x1_bit");
  bit.vision_cfg.layers = {1, 2};
  bit.vision_cfg.width = 8;
  bit.vision_cfg.norm_groups = 4;
  bit.vision_cfg.pool_type = "avg";
  mixer.vision_cfg = tiny_timm("mixer_b16_224");
  mixer.vision_cfg.pool_type = "avg";
  mixer.vision_cfg.token_mlp_width = 8;
  return {{"ViT", vit},       {"ResNet", resnet}, {"timm and BERT", timm},
          {"SigLIP", siglip}, {"BiT", bit},       {"Mixer", mixer}};
}

ClipModel make(const ModelConfig& config) {
  ClipModel model(config);
  model->reset_parameters(at::make_generator<at::CPUGeneratorImpl>(uint64_t{5}));
  return model;
}

struct Inputs {
  torch::Tensor images, tokens;
};

Inputs inputs() {
  at::manual_seed(7);
  return {at::randn({kBatch, 3, 32, 32}), at::randint(1, 40, {kBatch, 7}, at::kLong)};
}

void train_steps(ClipModel& model, int64_t steps) {
  const auto [images, tokens] = inputs();
  optim::AdamW optimizer(model->named_trainable(), {}, optim::open_clip_decays);
  for (int64_t i = 0; i < steps; ++i) {
    loss::model_loss(model->forward(images, tokens)).loss.backward();
    optimizer.step(1e-2);
    optimizer.zero_grad();
  }
}

NamedTensors copies(const NamedTensors& tensors) {
  NamedTensors result;
  for (const auto& [name, tensor] : tensors) result.emplace_back(name, tensor.detach().clone());
  return result;
}

std::set<std::string> changed(const NamedTensors& before, const NamedTensors& after) {
  std::set<std::string> names;
  for (size_t i = 0; i < before.size(); ++i) {
    if (!at::equal(before[i].second, after[i].second)) names.insert(before[i].first);
  }
  return names;
}

TEST(TowerTest, LayerGroupsCoverEveryTensorOnceFromTheInputToTheHead) {
  for (const auto& [kind, config] : models()) {
    const auto model = make(config);
    for (TowerImpl* tower : std::vector<TowerImpl*>{model->visual.get(), model->text.get()}) {
      std::set<int64_t> groups;
      for (const auto& item : tower->named_parameters()) groups.insert(tower->layer_group(item.key()));
      std::set<int64_t> expected{kHeadGroup};
      for (int64_t i = 0; i < tower->num_layer_groups(); ++i) expected.insert(i);
      EXPECT_EQ(groups, expected) << kind;
      for (const auto& item : tower->named_parameters()) {
        EXPECT_EQ(is_projection(tower->checkpoint_name(item.key())), tower->layer_group(item.key()) == kHeadGroup)
            << kind << " " << item.key();
      }
    }
  }
}

TEST(TowerTest, LockedTensorsKeepTheirBitsAndHaveNoGradientWhileTheRestLearns) {
  for (const auto& [kind, config] : models()) {
    for (int64_t unlocked = 0; unlocked <= 2; ++unlocked) {
      auto model = make(config);
      model->visual->lock({.unlocked_groups = unlocked});
      model->text->lock({.unlocked_groups = unlocked, .head = true});
      model->train(true);
      for (TowerImpl* tower : std::vector<TowerImpl*>{model->visual.get(), model->text.get()}) {
        const auto is_locked = [&](const std::string& name) {
          const auto group = tower->layer_group(name);
          if (group == kHeadGroup) return tower == static_cast<TowerImpl*>(model->text.get());
          return group < tower->num_layer_groups() - unlocked;
        };
        for (const auto& item : tower->named_parameters()) {
          EXPECT_EQ(item.value().requires_grad(), !is_locked(item.key())) << kind << " " << item.key();
        }
        NamedTensors own, locked;
        for (const auto& item : tower->named_parameters()) own.emplace_back(item.key(), item.value());
        for (const auto& item : tower->named_buffers()) own.emplace_back(item.key(), item.value());
        for (const auto& [name, tensor] : own) {
          if (is_locked(name)) locked.emplace_back(name, tensor);
        }
        const auto before = copies(locked), all_before = copies(own);
        train_steps(model, 2);
        EXPECT_TRUE(changed(before, locked).empty()) << kind << " " << *changed(before, locked).begin();
        for (const auto& [name, tensor] : locked) EXPECT_FALSE(tensor.grad().defined()) << kind << " " << name;
        if (unlocked > 0) {
          EXPECT_FALSE(changed(all_before, own).empty()) << kind;
        }
      }
    }
  }
}

TEST(TowerTest, ALockedTowerGivesTheSameEmbeddingBeforeAndAfterTrainingAndBuildsNoGraph) {
  for (const auto& [kind, config] : models()) {
    auto model = make(config);
    model->visual->lock({.unlocked_groups = 0, .head = true});
    model->train(true);
    const auto images = inputs().images;
    const auto before = model->encode_image(images);
    EXPECT_FALSE(before.requires_grad()) << kind;
    train_steps(model, 2);
    EXPECT_TRUE(at::equal(model->encode_image(images), before)) << kind;
  }
}

TEST(TowerTest, UnlockingGivesBackWhatWasLocked) {
  for (const auto& [kind, config] : models()) {
    auto model = make(config);
    model->visual->lock({});
    model->visual->unlock();
    EXPECT_EQ(model->named_trainable().size(), make(config)->named_trainable().size()) << kind;
    EXPECT_TRUE(model->visual->is_training()) << kind;
    for (const auto& item : model->visual->named_modules()) EXPECT_TRUE(item.value()->is_training()) << kind;
  }
}

TEST(TowerTest, RefusesMoreUnlockedGroupsThanThereAre) {
  auto model = make(models().front().second);
  try {
    model->visual->lock({.unlocked_groups = 9});
    FAIL() << "no error";
  } catch (const ConfigError& error) {
    EXPECT_NE(std::string(error.what()).find("unlocked_groups must be in [0, 4]"), std::string::npos) << error.what();
  }
}

TEST(TowerTest, TheProjectionAloneGivesTheWholeModelsOutputForItsFeatures) {
  for (const auto& [kind, config] : models()) {
    auto whole = make(config);
    whole->visual->lock({});
    ClipModel part(config, torch::kCPU, ImageTowerPart::projection);
    part->load_state(whole->state());
    const auto [images, tokens] = inputs();
    const auto expected = whole->forward(images, tokens);
    const auto features = whole->visual->forward_features(images);
    const auto actual = part->forward_features(features, tokens);
    EXPECT_TRUE(at::equal(actual.image_features, expected.image_features)) << kind;
    EXPECT_TRUE(at::equal(actual.text_features, expected.text_features)) << kind;
    EXPECT_THROW(part->encode_image(images), Error) << kind;
  }
}

TEST(TowerTest, ATowersStateLoadsIntoAnotherWithoutItsHead) {
  for (const auto& [kind, config] : models()) {
    const auto source = make(config);
    auto other_config = config;
    other_config.embed_dim = 20;  // the head has another shape
    ClipModel target(other_config);
    target->reset_parameters(at::make_generator<at::CPUGeneratorImpl>(uint64_t{6}));
    const auto head_before = copies(target->visual->state());
    EXPECT_FALSE(target->visual->load_state(lazy(source->visual->state()))) << kind;
    ClipModel same(config);
    same->reset_parameters(at::make_generator<at::CPUGeneratorImpl>(uint64_t{6}));
    EXPECT_TRUE(same->visual->load_state(lazy(source->visual->state()))) << kind;
    for (const auto& [name, tensor] : target->visual->state()) {
      for (const auto& [source_name, source_tensor] : source->visual->state()) {
        if (name != source_name || is_projection(name)) continue;
        EXPECT_TRUE(at::equal(tensor, source_tensor)) << name;
      }
    }
  }
}

TEST(TowerTest, NamesWhatOfAFileDoesNotFit) {
  const auto model = make(models().front().second);
  auto tensors = lazy(model->visual->state());
  tensors.front().name = "strange";
  try {
    make(models().front().second)->visual->load_state(tensors);
    FAIL() << "no error";
  } catch (const CheckpointError& error) {
    const std::string message = error.what();
    EXPECT_NE(message.find("strange: unexpected"), std::string::npos) << message;
    EXPECT_NE(message.find("class_embedding: missing"), std::string::npos) << message;
  }
}

TEST(TowerTest, PlacesComeAfterTheEmbeddingAndTheirMeanIsWhatMeanPoolingTakes) {
  const at::NoGradGuard no_grad;
  const auto images = at::randn({kBatch, 3, 32, 32}, at::make_generator<at::CPUGeneratorImpl>(uint64_t{6}));
  for (auto [name, config] : models()) {
    SCOPED_TRACE(name);
    auto model = make(config);
    model->eval();
    if (config.vision_cfg.pool_type == "map") {
      EXPECT_THROW(model->encode_places(images), ConfigError);
      continue;
    }
    auto all = model->encode_places(images);
    ASSERT_EQ(all.size(2), config.embed_dim);
    EXPECT_TRUE(at::allclose(all.select(1, 0), model->encode_image(images), 1e-4, 1e-5));
    if (config.vision_cfg.is_resnet() && !config.vision_cfg.is_timm()) continue;
    // The same weights with mean pooling.
    for (const bool norm_after : {false, true}) {
      if (norm_after && config.vision_cfg.is_timm() && config.vision_cfg.family() != TimmFamily::vit) continue;
      config.vision_cfg.pool_type = "avg";
      config.vision_cfg.final_ln_after_pool = norm_after;
      auto pooled = make(config);
      pooled->eval();
      all = pooled->visual->forward_places(images);
      EXPECT_TRUE(at::allclose(all.select(1, 0), pooled->visual->forward_features(images), 1e-4, 1e-5));
      if (norm_after) continue;
      EXPECT_TRUE(at::allclose(all.slice(1, 1).mean(1), all.select(1, 0), 1e-4, 1e-5));
    }
  }
}

}  // namespace
}  // namespace contrastive::models
