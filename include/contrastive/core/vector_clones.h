#pragma once

/// Marks a function that is compiled for several kinds of processors; the best one for this machine is picked when the
/// library is loaded. Templates can't be marked: their bodies are inlined (CONTRASTIVE_INLINE) into functions that are.
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__)
#define CONTRASTIVE_VECTOR_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CONTRASTIVE_VECTOR_CLONES
#endif
#define CONTRASTIVE_INLINE inline __attribute__((always_inline))
