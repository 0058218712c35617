#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "contrastive/core/config_node.h"
#include "contrastive/models/model_config.h"

/// The sizes behind the names of towers that open_clip takes from other libraries.
namespace contrastive::models::detail {

/// What a name of timm's says alone, image size apart; nothing if the name isn't known.
/// Source: timm 1.0, models/{vision_transformer,resnetv2,mlp_mixer}.py.
std::optional<VisionConfig> timm_defaults(const std::string& name);

/// Forms of the known names, for messages.
std::string known_timm_names();

/// What a BERT's name says alone; nothing if the name isn't known. Source: the config.json of the models.
std::optional<TextConfig> bert_defaults(const std::string& name);

std::string known_bert_names();

}  // namespace contrastive::models::detail
