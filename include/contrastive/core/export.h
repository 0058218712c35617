#pragma once

/// Marks what the shared library exports; everything else is hidden (-fvisibility=hidden).
#define CONTRASTIVE_API __attribute__((visibility("default")))
