#pragma once

#include <csetjmp>

namespace contrastive::image::detail {

/// Runs C library calls that report errors by longjmp to `target`; false if they did. Nothing that `calls` creates may
/// need a destructor, since longjmp runs none. Not inlined: the caller's variables then never live across the setjmp.
template <typename Calls>
[[gnu::noinline]] bool guarded(std::jmp_buf& target, const Calls& calls) {
  if (setjmp(target) != 0) return false;
  calls();
  return true;
}

}  // namespace contrastive::image::detail
