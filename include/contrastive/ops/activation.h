#pragma once

namespace contrastive::ops {

/// The exact GELU, its approximation by tanh (Hendrycks & Gimpel 2016), and x * sigmoid(1.702 x).
enum class Activation { gelu, gelu_tanh, quick_gelu };

}  // namespace contrastive::ops
